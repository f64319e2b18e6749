// Loads images into contexts and launches them.
//
// A context's functions are kept in a list that only grows: launches walk it without a lock, prepare() appends under one.
// Contexts are told apart by cuCtxGetId, because a new context may get the address of a destroyed one.
#include "launcher.h"

#include <pthread.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "errors.h"

namespace kunlun {
namespace {

thread_local char last_error[1024] = "";

// An image in the order in which a context tries them, and its function there once it is loaded. `refused`: why the driver will
// never take it; read and written with `loading` held.
struct Slot {
  const Image* image;
  std::atomic<CUfunction> function;
  CUresult refused;
};

// What is loaded in one context. Lives as long as the process: launches read it without a lock.
struct Loaded {
  unsigned long long id;
  int sm;
  bool ptx;  // only text images are considered
  const Loaded* next;
  unsigned count;
  Slot* slots;  // images that run on `sm`, best first
};

// Holds a mutex until the end of the scope.
class Guard {
 public:
  explicit Guard(pthread_mutex_t& mutex) : mutex_(mutex) { pthread_mutex_lock(&mutex_); }
  ~Guard() { pthread_mutex_unlock(&mutex_); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  pthread_mutex_t& mutex_;
};

std::atomic<const Loaded*> contexts{nullptr};
std::atomic<bool> force_ptx{false};
pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

kunlun_status driver_error(const Driver& d, const char* call, CUresult result) {
  const char *name = nullptr, *text = nullptr;
  if (d.get_error_name(result, &name) != kSuccess || !name) name = "unknown";
  if (d.get_error_string(result, &text) != kSuccess || !text) text = "no description";
  return fail(KUNLUN_DRIVER_ERROR, "%s failed: %s (%d): %s", call, name, result, text);
}

// A cubin runs on its own compute capability and, below 9.0, on later minor ones of the same major one (those of 9.0 and
// later are architecture-specific). Text runs on everything from its own capability on.
bool runs_on(const Image& image, int sm, bool only_ptx) {
  if (image.ptx) return sm >= image.sm;
  if (only_ptx) return false;
  return image.sm == sm || (image.sm < 90 && image.sm / 10 == sm / 10 && image.sm < sm);
}

// Cubins before text, and of several cubins the nearest one.
int rank(const Image& image, int sm) { return image.ptx ? 1000 : sm - image.sm; }

const Loaded* find(unsigned long long id, bool ptx) {
  for (const Loaded* c = contexts.load(std::memory_order_acquire); c; c = c->next)
    if (c->id == id && c->ptx == ptx) return c;
  return nullptr;
}

kunlun_status current(const Driver& d, unsigned long long& id) {
  CUcontext context = nullptr;
  CUresult result = d.context_get_current(&context);
  if (result != kSuccess) return driver_error(d, "cuCtxGetCurrent", result);
  if (!context)
    return fail(KUNLUN_NO_CONTEXT, "no CUDA context is current on this thread; call cudaSetDevice (or cuCtxSetCurrent) first");
  result = d.context_get_id(context, &id);
  return result == kSuccess ? KUNLUN_OK : driver_error(d, "cuCtxGetId", result);
}

// The list entry of the current context; made when absent. `loading` is held.
kunlun_status enter(const Driver& d, unsigned long long id, const Loaded*& entry) {
  const bool ptx = force_ptx.load();
  entry = find(id, ptx);
  if (entry) return KUNLUN_OK;
  CUdevice device = 0;
  CUresult result = d.context_get_device(&device);
  if (result != kSuccess) return driver_error(d, "cuCtxGetDevice", result);
  int major = 0, minor = 0;
  result = d.device_get_attribute(&major, kComputeCapabilityMajor, device);
  if (result == kSuccess) result = d.device_get_attribute(&minor, kComputeCapabilityMinor, device);
  if (result != kSuccess) return driver_error(d, "cuDeviceGetAttribute", result);
  if (major < 8)
    return fail(KUNLUN_UNSUPPORTED_DEVICE, "device %d has compute capability %d.%d; expected 8.0 or later", device, major, minor);
  auto* made = static_cast<Loaded*>(std::calloc(1, sizeof(Loaded)));
  auto* slots = static_cast<Slot*>(std::calloc(kImageCount + 1, sizeof(Slot)));
  if (!made || !slots) {
    std::free(made), std::free(slots);
    return fail(KUNLUN_DRIVER_ERROR, "out of memory for the table of %u images", kImageCount);
  }
  const int sm = 10 * major + minor;
  unsigned count = 0;
  for (unsigned i = 0; i < kImageCount; ++i) {  // insertion sort, stable: of equal ranks the earlier row is tried first
    if (!runs_on(kImages[i], sm, ptx)) continue;
    unsigned at = count++;
    for (; at > 0 && rank(*slots[at - 1].image, sm) > rank(kImages[i], sm); --at) slots[at].image = slots[at - 1].image;
    slots[at].image = &kImages[i];
  }
  *made = Loaded{id, sm, ptx, contexts.load(), count, slots};
  entry = made;
  contexts.store(entry, std::memory_order_release);
  return KUNLUN_OK;
}

// Whether a driver that answers so to an image always will. What it is short of for the moment, memory say, it may take later.
bool is_final(CUresult result) {
  return result == kInvalidImage || result == kNoBinaryForGpu || result == kUnsupportedPtxVersion;
}

kunlun_status load_error(const Driver& d, const Loaded& entry, const Image& image, CUresult result, const char* log) {
  const char* text = nullptr;
  if (d.get_error_string(result, &text) != kSuccess || !text) text = "no description";
  return fail(KUNLUN_DRIVER_ERROR, "cuModuleLoadDataEx failed for %s (%s of sm_%d) on sm_%d: %s (%d)%s%s", image.name,
              image.ptx ? "PTX" : "cubin", image.sm, entry.sm, text, result, log[0] ? "; " : "", log);
}

// The kernel of an image in `module`, allowed its shared memory.
kunlun_status find_kernel(const Driver& d, const Image& image, CUmodule module, CUfunction& function) {
  CUresult result = d.module_get_function(&function, module, image.kernel);
  if (result != kSuccess) return driver_error(d, "cuModuleGetFunction", result);
  if (image.shared_bytes <= 48 * 1024) return KUNLUN_OK;  // what every kernel may use without asking
  result = d.function_set_attribute(function, kFuncMaxDynamicSharedBytes, static_cast<int>(image.shared_bytes));
  return result == kSuccess ? KUNLUN_OK : driver_error(d, "cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES)", result);
}

// Loads an image into the current context, which is that of `entry`. `loading` is held.
kunlun_status load(const Driver& d, const Loaded& entry, Slot& slot) {
  const Image& image = *slot.image;
  if (slot.refused != kSuccess) return load_error(d, entry, image, slot.refused, "");
  char log[512] = "";
  int options[] = {kJitErrorLogBuffer, kJitErrorLogBufferBytes};
  void* values[] = {log, reinterpret_cast<void*>(sizeof log)};
  CUmodule module = nullptr;
  const CUresult result = d.module_load_data(&module, image.data, 2, options, values);
  if (result != kSuccess) {
    if (is_final(result)) slot.refused = result;
    return load_error(d, entry, image, result, log);
  }
  CUfunction function = nullptr;
  if (const kunlun_status status = find_kernel(d, image, module, function)) {
    d.module_unload(module);
    return status;
  }
  slot.function.store(function, std::memory_order_release);
  return KUNLUN_OK;
}

// The best image for `params` that is loaded or, with `load_now`, that loads. A cubin that the driver refuses (it is older
// than the tools that made it) gives way to text.
kunlun_status select(const Driver& d, Family family, const void* params, const Loaded& entry, bool load_now, Slot*& chosen) {
  bool accepted = false;
  for (unsigned i = 0; i < entry.count; ++i) {
    Slot& slot = entry.slots[i];
    if (slot.image->family != family || !slot.image->accepts(params)) continue;
    accepted = true, chosen = &slot;
    if (slot.function.load(std::memory_order_acquire)) return KUNLUN_OK;
    if (load_now && load(d, entry, slot) == KUNLUN_OK) return KUNLUN_OK;
  }
  if (!accepted)
    return fail(KUNLUN_UNSUPPORTED_VARIANT, "no kernel for these parameters on sm_%d; there are: %s", entry.sm,
                kVariants[static_cast<int>(family)]);
  if (load_now) return KUNLUN_DRIVER_ERROR;  // the last failure's message stands
  return fail(KUNLUN_NOT_PREPARED, "this variant is not loaded in the current context; prepare it first, outside the hot path");
}

// Whether the variant of slot `at` is loaded from an image that is tried before it.
bool superseded(const Loaded& entry, unsigned at) {
  for (unsigned i = 0; i < at; ++i)
    if (!std::strcmp(entry.slots[i].image->name, entry.slots[at].image->name) && entry.slots[i].function.load()) return true;
  return false;
}

// Loads one image of every variant: for each name the best one that the driver takes.
kunlun_status load_every_variant(const Driver& d, const Loaded& entry) {
  for (unsigned i = 0; i < entry.count; ++i) {
    Slot& slot = entry.slots[i];
    if (slot.function.load() || superseded(entry, i) || load(d, entry, slot) == KUNLUN_OK) continue;
    if (slot.image->ptx) return KUNLUN_DRIVER_ERROR;  // text comes last: nothing else is left to try
  }
  return KUNLUN_OK;
}

// The loaded image for `params` in the current context. Takes no lock.
kunlun_status prepared(Family family, const void* params, Slot*& chosen) {
  const Driver* d = driver();
  if (!d) return KUNLUN_NO_DRIVER;
  unsigned long long id = 0;
  if (const kunlun_status status = current(*d, id)) return status;
  const Loaded* entry = find(id, force_ptx.load(std::memory_order_relaxed));
  if (!entry) return fail(KUNLUN_NOT_PREPARED, "nothing is loaded in the current context; prepare it first, outside the hot path");
  return select(*d, family, params, *entry, false, chosen);
}

// The entry of the current context, made when absent. `loading` is held.
kunlun_status enter_current(const Driver* d, const Loaded*& entry) {
  if (!d) return KUNLUN_NO_DRIVER;
  unsigned long long id = 0;
  if (const kunlun_status status = current(*d, id)) return status;
  return enter(*d, id, entry);
}

}  // namespace

kunlun_status fail(kunlun_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

kunlun_status prepare(Family family, const void* params) {
  const Driver* d = driver();
  const Guard guard(loading);
  const Loaded* entry = nullptr;
  if (const kunlun_status status = enter_current(d, entry)) return status;
  Slot* chosen = nullptr;
  return select(*d, family, params, *entry, true, chosen);
}

kunlun_status prepare_all() {
  const Driver* d = driver();
  const Guard guard(loading);
  const Loaded* entry = nullptr;
  if (const kunlun_status status = enter_current(d, entry)) return status;
  return load_every_variant(*d, *entry);
}

kunlun_status unit_rows(Family family, const void* params, int32_t* rows) {
  Slot* chosen = nullptr;
  if (const kunlun_status status = prepared(family, params, chosen)) return status;
  *rows = chosen->image->unit_rows;
  return KUNLUN_OK;
}

kunlun_status launch(Family family, const void* params, CUstream stream) {
  Slot* chosen = nullptr;
  if (const kunlun_status status = prepared(family, params, chosen)) return status;
  return chosen->image->launch(params, *chosen->image, chosen->function.load(std::memory_order_acquire), stream);
}

kunlun_status enqueue(const Image& image, CUfunction function, const uint64_t (&grid)[3], void** arguments, CUstream stream) {
  if (!grid[0] || !grid[1] || !grid[2]) return KUNLUN_OK;
  if (grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535)
    return fail(KUNLUN_INVALID_ARGUMENT, "%s: grid %llu x %llu x %llu exceeds 2147483647 x 65535 x 65535; split the batch", image.name,
                static_cast<unsigned long long>(grid[0]), static_cast<unsigned long long>(grid[1]),
                static_cast<unsigned long long>(grid[2]));
  const Driver* d = driver();
  const unsigned gx = static_cast<unsigned>(grid[0]), gy = static_cast<unsigned>(grid[1]), gz = static_cast<unsigned>(grid[2]);
  const CUresult result = d->launch(function, gx, gy, gz, image.threads, 1, 1, image.shared_bytes, stream, arguments, nullptr);
  return result == kSuccess ? KUNLUN_OK : driver_error(*d, "cuLaunchKernel", result);
}

}  // namespace kunlun

extern "C" {

const char* kunlun_last_error(void) { return kunlun::last_error; }
int kunlun_kernels_abi(void) { return KUNLUN_KERNELS_ABI; }
const char* kunlun_kernels_manifest(void) { return kunlun::kManifest; }
void kunlun_force_ptx(int on) { kunlun::force_ptx.store(on != 0); }
kunlun_status kunlun_prepare_all(void) { return kunlun::prepare_all(); }

}  // extern "C"
