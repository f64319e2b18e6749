// Opens libcuda.so.1. Nothing runs when this library is loaded; the first call that needs the driver comes here.
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cstdio>

#include "errors.h"

namespace kunlun {
namespace {

Driver table;
char error[512];  // why there is no driver, or ""

template <typename Function>
bool resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function) return true;
  std::snprintf(error, sizeof error, "libcuda.so.1 has no %s: the NVIDIA driver is older than R525 (CUDA 12.0); update it", name);
  return false;
}

void open_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = dlerror();
    std::snprintf(error, sizeof error,
                  "no NVIDIA driver: %s; install a driver of R525 or later, or give the container access to the GPU",
                  reason ? reason : "libcuda.so.1 cannot be opened");
    return;
  }
  Driver& d = table;
  const bool complete =
      resolve(library, "cuInit", d.init) && resolve(library, "cuGetErrorName", d.get_error_name) &&
      resolve(library, "cuGetErrorString", d.get_error_string) && resolve(library, "cuCtxGetCurrent", d.context_get_current) &&
      resolve(library, "cuCtxGetId", d.context_get_id) && resolve(library, "cuCtxGetDevice", d.context_get_device) &&
      resolve(library, "cuDeviceGetAttribute", d.device_get_attribute) &&
      resolve(library, "cuModuleLoadDataEx", d.module_load_data) && resolve(library, "cuModuleUnload", d.module_unload) &&
      resolve(library, "cuModuleGetFunction", d.module_get_function) &&
      resolve(library, "cuFuncSetAttribute", d.function_set_attribute) && resolve(library, "cuLaunchKernel", d.launch);
  if (!complete) return;
  const CUresult result = d.init(0);
  if (result == kSuccess) return;
  const char* text = nullptr;
  if (d.get_error_string(result, &text) != kSuccess || !text) text = "unknown error";
  std::snprintf(error, sizeof error, "the NVIDIA driver does not start: cuInit returned %d (%s)", result, text);
}

}  // namespace

const Driver* driver() {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_driver);
  if (!error[0]) return &table;
  fail(KUNLUN_NO_DRIVER, "%s", error);
  return nullptr;
}

}  // namespace kunlun
