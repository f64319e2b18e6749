// Checks that every family shares. They cost nanoseconds and read no device memory.
#pragma once

#include <cstdint>

#include "errors.h"

namespace kunlun {

struct Range {
  const char* name;
  int32_t value, least, most;
};

struct Address {
  const char* name;
  const void* address;
  unsigned alignment;
  bool optional;
};

inline kunlun_status check_version(uint32_t found, uint32_t expected, const char* macro) {
  if (found == expected) return KUNLUN_OK;
  return fail(KUNLUN_BAD_VERSION, "params->version is 0x%08x, expected 0x%08x: set it to %s of this library's header", found, expected,
              macro);
}

template <unsigned count>
kunlun_status check_ranges(const Range (&ranges)[count]) {
  for (const Range& r : ranges)
    if (r.value < r.least || r.value > r.most)
      return fail(KUNLUN_INVALID_ARGUMENT, "params->%s is %d, expected %d to %d", r.name, r.value, r.least, r.most);
  return KUNLUN_OK;
}

template <unsigned count>
kunlun_status check_addresses(const Address (&addresses)[count]) {
  for (const Address& a : addresses) {
    if (!a.address && !a.optional) return fail(KUNLUN_INVALID_ARGUMENT, "params->%s is NULL, expected a device address", a.name);
    if (reinterpret_cast<uintptr_t>(a.address) % a.alignment)
      return fail(KUNLUN_INVALID_ARGUMENT, "params->%s is %p, expected an address aligned to %u bytes", a.name, a.address, a.alignment);
  }
  return KUNLUN_OK;
}

// Strides in elements: rows are loaded 16 elements at a time.
template <unsigned count>
kunlun_status check_strides(const Range (&strides)[count]) {
  for (const Range& s : strides)
    if (s.value <= 0 || s.value % 16)
      return fail(KUNLUN_INVALID_ARGUMENT, "params->%s is %d, expected a positive multiple of 16 elements", s.name, s.value);
  return KUNLUN_OK;
}

}  // namespace kunlun
