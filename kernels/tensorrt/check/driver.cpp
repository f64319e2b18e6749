// What NVIDIA's parser and builder make of one ONNX file, as one JSON object on stdout. No GPU, no driver.
//
//   driver --infer libtensorrt_rtx.so --parser libtensorrt_onnxparser_rtx.so --plugin libkunlun_tensorrt.so --model m.onnx
//          [--profile q:1x2x64:100x2x64:512x2x64 …] [--plan file]
//
// With profiles a plan is built. TensorRT's own libnvinfer.so and libnvonnxparser.so do as well. Both are opened at run time
// and asked for their version, so that headers of a neighbouring release serve.
#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>

#include "json.h"

namespace {

using namespace nvinfer1;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

class Logger final : public ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) messages.push_back(quoted(message));
  }
  std::vector<std::string> messages;
};

template <typename Function>
Function entry(void* library, const char* name) {
  auto found = reinterpret_cast<Function>(dlsym(library, name));
  if (!found) fail(std::string(name) + ": no such function: " + dlerror());
  return found;
}

void* opened(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) fail(path + ": cannot be opened: " + dlerror());
  return library;
}

struct Profile {
  std::string input;
  Dims dims[3];  // minimum, optimum, maximum
};

struct Options {
  std::string infer, parser, plugin, model, plan;
  std::vector<Profile> profiles;
};

Dims dims_of(const std::string& text) {
  Dims dims{};
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, 'x');) dims.d[dims.nbDims++] = std::stoll(part);
  return dims;
}

Options parsed(int count, char** values) {
  Options options;
  std::map<std::string, std::string*> known{{"--infer", &options.infer},
                                            {"--parser", &options.parser},
                                            {"--plugin", &options.plugin},
                                            {"--model", &options.model},
                                            {"--plan", &options.plan}};
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = values[i], value = values[i + 1];
    if (name == "--profile") {
      std::istringstream parts(value);
      std::string input, sizes[3];
      std::getline(parts, input, ':');
      for (std::string& size : sizes) std::getline(parts, size, ':');
      options.profiles.push_back({input, {dims_of(sizes[0]), dims_of(sizes[1]), dims_of(sizes[2])}});
    } else if (known.count(name)) {
      *known[name] = value;
    } else {
      fail(name + ": expected --infer, --parser, --plugin, --model, --profile or --plan");
    }
  }
  return options;
}

std::string name_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "f32";
    case DataType::kHALF: return "f16";
    case DataType::kBF16: return "bf16";
    case DataType::kINT32: return "i32";
    case DataType::kINT64: return "i64";
    case DataType::kBOOL: return "bool";
    default: return "type " + std::to_string(static_cast<int>(type));
  }
}

std::string described(const ITensor& tensor) {
  std::vector<std::string> shape;
  const Dims dims = tensor.getDimensions();
  for (int32_t i = 0; i < dims.nbDims; ++i) shape.push_back(std::to_string(dims.d[i]));
  return object({{"name", quoted(tensor.getName())}, {"type", quoted(name_of(tensor.getType()))}, {"shape", array(shape)}});
}

// Name, type and bytes of every field, for comparison.
std::string text_of(const PluginFieldCollection* fields) {
  std::string text;
  const size_t sizes[] = {2, 4, 8, 1, 2, 4, 1, sizeof(Dims), 1, 2, 8, 1, 1, 1};
  for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    text += std::string(field.name) + "=";
    const auto* bytes = static_cast<const unsigned char*>(field.data);
    for (size_t at = 0; at < sizes[static_cast<size_t>(field.type)] * static_cast<size_t>(field.length); ++at)
      text += "0123456789abcdef"[bytes[at] >> 4], text += "0123456789abcdef"[bytes[at] & 15];
    text += ";";
  }
  return text;
}

const PluginFieldCollection* serialized(IPluginV3& plugin) {
  auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  return runtime->getFieldsToSerialize();
}

// A plugin layer: what it is, and whether a plugin restored from its fields serialises to the same fields.
std::string described(IPluginV3Layer& layer, IPluginRegistry& registry) {
  IPluginV3& plugin = layer.getPlugin();
  auto* core = static_cast<IPluginV3OneCore*>(plugin.getCapabilityInterface(PluginCapabilityType::kCORE));
  const std::string before = text_of(serialized(plugin));
  auto* creator = static_cast<IPluginCreatorV3One*>(
      registry.getCreator(core->getPluginName(), core->getPluginVersion(), core->getPluginNamespace()));
  std::string after = "no creator";
  if (creator) {
    const std::unique_ptr<IPluginV3> restored(creator->createPlugin("restored", serialized(plugin), TensorRTPhase::kRUNTIME));
    after = restored ? text_of(serialized(*restored)) : "not restored";
  }
  return object({{"layer", quoted(layer.getName())},
                 {"operator", quoted(core->getPluginName())},
                 {"namespace", quoted(core->getPluginNamespace())},
                 {"output", described(*layer.getOutput(0))},
                 {"fields", quoted(before)},
                 {"restored", before == after ? "true" : "false"}});
}

std::string built(IBuilder& builder, INetworkDefinition& network, const Options& options) {
  const std::unique_ptr<IBuilderConfig> config(builder.createBuilderConfig());
  IOptimizationProfile* profile = builder.createOptimizationProfile();
  for (const Profile& p : options.profiles)
    for (int32_t i = 0; i < 3; ++i) {
      const OptProfileSelector selectors[] = {OptProfileSelector::kMIN, OptProfileSelector::kOPT, OptProfileSelector::kMAX};
      if (!profile->setDimensions(p.input.c_str(), selectors[i], p.dims[i])) fail(p.input + ": sizes do not fit the profile");
    }
  config->addOptimizationProfile(profile);
  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<IHostMemory> plan(builder.buildSerializedNetwork(network, *config));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!plan) return "null";
  if (!options.plan.empty())
    std::ofstream(options.plan, std::ios::binary).write(static_cast<const char*>(plan->data()), static_cast<std::streamsize>(plan->size()));
  return object({{"bytes", std::to_string(plan->size())}, {"seconds", std::to_string(seconds)}});
}

}  // namespace

int main(int count, char** values) {
  const Options options = parsed(count, values);
  void* infer = opened(options.infer);
  void* onnx = opened(options.parser);
  Logger logger;
  const int32_t version = entry<int32_t (*)()>(infer, "getInferLibVersion")();
  const auto create = entry<void* (*)(void*, int32_t)>(infer, "createInferBuilder_INTERNAL");
  const std::unique_ptr<IBuilder> builder(static_cast<IBuilder*>(create(&logger, version)));
  if (!builder) fail("createInferBuilder: no builder");
  IPluginRegistry& registry = *entry<IPluginRegistry* (*)()>(infer, "getPluginRegistry")();
  const bool loaded = registry.loadLibrary(options.plugin.c_str()) != nullptr;
  const std::unique_ptr<INetworkDefinition> network(
      builder->createNetworkV2(1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)));
  const int32_t parser_version = entry<int32_t (*)()>(onnx, "getNvOnnxParserVersion")();
  const auto create_parser = entry<void* (*)(void*, void*, int32_t)>(onnx, "createNvOnnxParser_INTERNAL");
  const std::unique_ptr<nvonnxparser::IParser> parser(
      static_cast<nvonnxparser::IParser*>(create_parser(network.get(), &logger, parser_version)));
  const bool is_parsed = parser->parseFromFile(options.model.c_str(), static_cast<int>(ILogger::Severity::kWARNING));

  std::vector<std::string> errors, plugins, inputs, outputs;
  for (int32_t i = 0; i < parser->getNbErrors(); ++i) errors.push_back(quoted(parser->getError(i)->desc()));
  if (is_parsed) {
    for (int32_t i = 0; i < network->getNbLayers(); ++i)
      if (ILayer* layer = network->getLayer(i); layer->getType() == LayerType::kPLUGIN_V3)
        plugins.push_back(described(*static_cast<IPluginV3Layer*>(layer), registry));
    for (int32_t i = 0; i < network->getNbInputs(); ++i) inputs.push_back(described(*network->getInput(i)));
    for (int32_t i = 0; i < network->getNbOutputs(); ++i) outputs.push_back(described(*network->getOutput(i)));
  }
  const std::string plan = is_parsed && !options.profiles.empty() ? built(*builder, *network, options) : "null";
  std::printf("%s\n", object({{"version", std::to_string(version)},
                              {"headers", std::to_string(NV_TENSORRT_VERSION)},
                              {"plugin_loaded", loaded ? "true" : "false"},
                              {"parsed", is_parsed ? "true" : "false"},
                              {"errors", array(errors)},
                              {"layers", std::to_string(network->getNbLayers())},
                              {"plugins", array(plugins)},
                              {"inputs", array(inputs)},
                              {"outputs", array(outputs)},
                              {"plan", plan},
                              {"messages", array(logger.messages)}})
                          .c_str());
  return 0;
}
