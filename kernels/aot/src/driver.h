// The part of the CUDA driver API that launches kernels, opened at run time. Declared here, because the library is built
// without a toolkit; names, values and layouts are those of cuda.h and have been stable since CUDA 12.0.
#pragma once

#include "kunlun_kernels.h"

namespace kunlun {

using CUresult = int;
using CUdevice = int;
using CUcontext = struct CUctx_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = ::CUstream_st*;
using CUdeviceptr = unsigned long long;

enum : int {
  kSuccess = 0,
  kInvalidImage = 200,
  kNoBinaryForGpu = 209,
  kUnsupportedPtxVersion = 222,
  kJitErrorLogBuffer = 5,
  kJitErrorLogBufferBytes = 6,
  kComputeCapabilityMajor = 75,
  kComputeCapabilityMinor = 76,
  kFuncMaxDynamicSharedBytes = 8,
};

struct Driver {
  CUresult (*init)(unsigned);
  CUresult (*get_error_name)(CUresult, const char**);
  CUresult (*get_error_string)(CUresult, const char**);
  CUresult (*context_get_current)(CUcontext*);
  CUresult (*context_get_id)(CUcontext, unsigned long long*);
  CUresult (*context_get_device)(CUdevice*);
  CUresult (*device_get_attribute)(int*, int, CUdevice);
  CUresult (*module_load_data)(CUmodule*, const void*, unsigned, int*, void**);
  CUresult (*module_unload)(CUmodule);
  CUresult (*module_get_function)(CUfunction*, CUmodule, const char*);
  CUresult (*function_set_attribute)(CUfunction, int, int);
  CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**);
};

// The driver, or nullptr after fail() has recorded why there is none. Opened once per process.
const Driver* driver();

}  // namespace kunlun
