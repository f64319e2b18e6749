// Whether tensors fit an operator, in words where they do not.
#pragma once

#include <NvInferRuntime.h>

#include "operators.h"

namespace kunlun::tensorrt {

// The kunlun_dtype of a TensorRT type, -1: none.
int32_t dtype_of(nvinfer1::DataType type);

// Number of inputs and their types. Reports and returns false where they do not fit.
bool check_types(const Operator& op, const Attributes& attributes, const nvinfer1::DataType* types, int32_t count);

// Ranks and sizes; -1 is a size that is not known yet. `dims` has one entry per input.
bool check_dims(const Operator& op, const Attributes& attributes, const nvinfer1::Dims* dims, int32_t count);

// The sizes of a call whose dimensions are all known.
Sizes sizes_of(const nvinfer1::PluginTensorDesc* inputs);

}  // namespace kunlun::tensorrt
