// What the shared library offers: TensorRT's own entries (getCreators, setLoggerFinder: IPluginRegistry::loadLibrary and
// trtexec --dynamicPlugins call them), and what a loader wants to know before it trusts it. Nothing runs at load time.
#include <cstring>
#include <new>
#include <string>

#include "log.h"
#include "plugin.h"

namespace kunlun::tensorrt {
namespace {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Operator& op) : op_(op), names_(names_of(op.attributes)) {
    collection_ = {static_cast<int32_t>(names_.size()), names_.data()};
  }

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    try {
      Attributes found;
      const bool is_restored = phase == nvinfer1::TensorRTPhase::kRUNTIME;
      if (read(op_.name, is_restored ? serialized(op_) : op_.attributes, fields, found)) return new Plugin(op_, found, phase);
    } catch (const std::bad_alloc&) {
      report(Severity::kERROR, "%s: out of memory for the plugin of node %s", op_.name, name);
    }
    return nullptr;
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Operator& op_;
  std::vector<nvinfer1::PluginField> names_;
  nvinfer1::PluginFieldCollection collection_{};
};

std::vector<Creator>& creators() {
  static std::vector<Creator> all(operators().begin(), operators().end());
  return all;
}

std::string manifest() {
  std::string names;
  for (const Operator& op : operators()) names += (names.empty() ? "\"" : ", \"") + std::string(op.name) + "\"";
  return "{\"namespace\": \"" + std::string(kNamespace) + "\", \"version\": \"" + kVersion + "\", \"tensorrt\": \"" +
         std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." + std::to_string(NV_TENSORRT_PATCH) +
         "\", \"operators\": [" + names + "], \"kernels\": " + kunlun_kernels_manifest() + "}";
}

}  // namespace
}  // namespace kunlun::tensorrt

extern "C" {

KUNLUN_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using kunlun::tensorrt::creators;
  static const std::vector<nvinfer1::IPluginCreatorInterface*> pointers = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> made;
    for (auto& creator : creators()) made.push_back(&creator);
    return made;
  }();
  count = static_cast<int32_t>(pointers.size());
  return pointers.data();
}

KUNLUN_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { kunlun::tensorrt::set_logger_finder(finder); }

// JSON: TensorRT version of the headers it was built with, operators, and what the launcher library inside holds.
KUNLUN_API const char* kunlun_tensorrt_manifest(void) {
  static const std::string text = kunlun::tensorrt::manifest();
  return text.c_str();
}

// The last error on this thread, "" if there was none.
KUNLUN_API const char* kunlun_tensorrt_last_error(void) { return kunlun::tensorrt::last_error(); }

}  // extern "C"
