// Between the families (gdpa.cpp, …), the generated table of images, and the driver.
#pragma once

#include <cstdint>

#include "driver.h"
#include "kunlun_kernels.h"

namespace kunlun {

struct Image;

// What a generated function hands to enqueue(): grid in blocks, addresses of the kernel's parameters in its order.
using LaunchFunction = kunlun_status (*)(const void* params, const Image&, CUfunction, CUstream);
using AcceptFunction = bool (*)(const void* params);

enum class Family : int { kGdpaForward, kWindowForward, kSeedPooling, kCount };

// One compiled variant for one compute capability.
struct Image {
  Family family;
  const char* name;
  int sm;       // 10 * major + minor
  bool ptx;     // text for newer GPUs, not a cubin
  const void* data;
  const char* kernel;
  unsigned threads;
  unsigned shared_bytes;
  int32_t unit_rows;  // query rows of one grid unit
  AcceptFunction accepts;
  LaunchFunction launch;
};

extern const Image kImages[];
extern const unsigned kImageCount;
extern const char kManifest[];
extern const char* const kVariants[static_cast<int>(Family::kCount)];  // for messages: what a family supports

// Finds the image that accepts `params` on the current context's GPU and loads it, once per context.
kunlun_status prepare(Family family, const void* params);

kunlun_status prepare_all();

// The unit_rows of the prepared image.
kunlun_status unit_rows(Family family, const void* params, int32_t* rows);

// Launches the prepared image; the hot path.
kunlun_status launch(Family family, const void* params, CUstream stream);

// Called by generated launch functions. A grid with a zero launches nothing.
kunlun_status enqueue(const Image&, CUfunction, const uint64_t (&grid)[3], void** arguments, CUstream stream);

inline uint64_t ceil_div(int64_t a, int64_t b) { return static_cast<uint64_t>((a + b - 1) / b); }

}  // namespace kunlun
