#include "plugin.h"

#include <new>

#include "log.h"
#include "shapes.h"

namespace kunlun::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kMaxInputs = 6;

// An int32 in the launcher's structs; dimensions are known when they come here.
bool fit(const Operator& op, const PluginTensorDesc* inputs, int32_t count) {
  for (int32_t i = 0; i < count; ++i)
    for (int32_t axis = 0; axis < inputs[i].dims.nbDims; ++axis)
      if (inputs[i].dims.d[axis] < 0 || inputs[i].dims.d[axis] > INT32_MAX) {
        report(Severity::kERROR, "%s: input %d: expected a size of 0 to %d on axis %d, found %lld; split the batch", op.name, i, INT32_MAX,
               axis, static_cast<long long>(inputs[i].dims.d[axis]));
        return false;
      }
  return true;
}

}  // namespace

std::vector<Attribute> serialized(const Operator& op) {
  std::vector<Attribute> all = op.attributes;
  all.push_back(integer("type", &Attributes::type, KUNLUN_BF16, -1));
  all.push_back(integer("heads", &Attributes::heads));
  all.push_back(integer("head_width", &Attributes::head_width));
  return all;
}

Plugin::Plugin(const Operator& op, const Attributes& attributes, nvinfer1::TensorRTPhase phase)
    : op_(op), attributes_(attributes), phase_(phase), text_(text_of(op.name, op.attributes, attributes)) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  try {
    return new Plugin(op_, attributes_, phase_);
  } catch (const std::bad_alloc&) {
    report(Severity::kERROR, "%s: out of memory for a clone", op_.name);
    return nullptr;
  }
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs, int32_t input_count) const noexcept {
  if (!check_types(op_, attributes_, inputs, input_count)) return 1;
  outputs[0] = inputs[0];
  return 0;
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*, int32_t,
                                nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& builder) noexcept {
  Dims known[kMaxInputs]{};
  for (int32_t i = 0; i < input_count && i < kMaxInputs; ++i) {
    known[i].nbDims = inputs[i].nbDims;
    for (int32_t axis = 0; axis < inputs[i].nbDims; ++axis)
      known[i].d[axis] = inputs[i].d[axis]->isConstant() ? inputs[i].d[axis]->getConstantValue() : -1;
  }
  if (!check_dims(op_, attributes_, known, input_count)) return 1;
  if (op_.layout != Layout::kPooled) {
    outputs[0] = inputs[0];
    return 0;
  }
  outputs[0].nbDims = 4;
  outputs[0].d[0] = builder.operation(nvinfer1::DimensionOperation::kSUB, *inputs[kOffsets].d[0], *builder.constant(1));
  for (int32_t axis = 0; axis < 3; ++axis) outputs[0].d[axis + 1] = inputs[0].d[axis];
  return 0;
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                       int32_t) noexcept {
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position >= kRowInputs && position < input_count) return tensor.type == DataType::kINT32;
  return dtype_of(tensor.type) >= 0 && tensor.type == tensors[0].desc.type;
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count, const DynamicPluginTensorDesc*,
                                int32_t) noexcept {
  Dims known[kMaxInputs]{};
  for (int32_t i = 0; i < input_count && i < kMaxInputs; ++i) known[i] = inputs[i].desc.dims;
  if (!check_dims(op_, attributes_, known, input_count)) return 1;
  attributes_.type = dtype_of(inputs[0].desc.type);
  attributes_.heads = static_cast<int32_t>(known[0].d[1]);
  attributes_.head_width = static_cast<int32_t>(known[0].d[2]);
  return 0;
}

bool Plugin::prepare(const Sizes& sizes, kunlun_status tolerated) const {
  const kunlun_status status = op_.prepare(attributes_, sizes);
  if (status == KUNLUN_OK) return true;
  const bool later = status == tolerated;
  report(later ? Severity::kINFO : Severity::kERROR, "%s: no kernel is loaded%s: %s", op_.name, later ? " yet" : "", kunlun_last_error());
  return later;
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*, int32_t) noexcept {
  Dims known[kMaxInputs]{};
  for (int32_t i = 0; i < input_count && i < kMaxInputs; ++i) known[i] = inputs[i].dims;
  if (!check_dims(op_, attributes_, known, input_count) || !fit(op_, inputs, input_count)) return 1;
  // A build without a GPU times nothing.
  const bool builds = phase_ == nvinfer1::TensorRTPhase::kBUILD;
  return prepare(sizes_of(inputs), builds ? KUNLUN_NO_DRIVER : KUNLUN_OK) ? 0 : 1;
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*, void const* const* inputs,
                        void* const* outputs, void*, cudaStream_t stream) noexcept {
  const kunlun_status status = op_.launch(attributes_, sizes_of(input_descs), inputs, outputs[0], stream);
  if (status == KUNLUN_OK) return 0;
  report(Severity::kERROR, "%s: not launched: %s", op_.name, kunlun_last_error());
  return static_cast<int32_t>(status);
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  const bool configured = attributes_.type >= 0;  // not while the build tries formats
  if (configured && phase_ == nvinfer1::TensorRTPhase::kRUNTIME)
    if (!prepare({attributes_.type, attributes_.heads, attributes_.head_width, 1, 1, 1}, KUNLUN_NO_CONTEXT)) return nullptr;
  return clone();
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  try {
    fields_ = fields_of(serialized(op_), attributes_);
  } catch (const std::bad_alloc&) {
    report(Severity::kERROR, "%s: out of memory for its fields", op_.name);
    return nullptr;
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

}  // namespace kunlun::tensorrt
