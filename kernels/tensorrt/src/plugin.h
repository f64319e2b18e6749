// The plugin of every operator: one class, told apart by an `Operator`.
//
// TensorRT calls the build part without a GPU being needed: nothing there touches CUDA. A kernel is loaded when a plugin is
// attached to an execution context (its type and widths are in the engine by then) and, where the build times the layer,
// in onShapeChange(); enqueue() only launches: it allocates nothing, reads no device memory and never waits, so it may
// run on any stream and be captured into a CUDA graph.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "operators.h"

namespace kunlun::tensorrt {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Operator& op, const Attributes& attributes, nvinfer1::TensorRTPhase phase);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // Core.
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // Build.
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs* shape_inputs,
                          int32_t shape_input_count, nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t input_count,
                                 int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept override;
  const char* getTimingCacheID() noexcept override { return text_.data(); }
  const char* getMetadataString() noexcept override { return text_.data(); }

  // Runtime.
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count, const nvinfer1::PluginTensorDesc* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                  void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  // Loads the kernel into the current CUDA context. False and an error where it cannot, except for `tolerated`: then later.
  bool prepare(const Sizes& sizes, kunlun_status tolerated) const;

  const Operator& op_;
  Attributes attributes_;
  nvinfer1::TensorRTPhase phase_;
  std::vector<char> text_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// Attributes as they are in an engine: those of the operator and what configurePlugin() has added.
std::vector<Attribute> serialized(const Operator& op);

}  // namespace kunlun::tensorrt
