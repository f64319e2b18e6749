// Drives the plugins as TensorRT would, without TensorRT: build phase, restore, attach, shapes, enqueue. What they did is
// printed as "name=value" lines for test_plugin.py. Arguments: the plugin library, and a recording libcuda.so.1 or "none".
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

extern "C" void* __libc_malloc(size_t);

namespace {

using namespace nvinfer1;

thread_local long allocations = 0;
void* library;

template <typename Result, typename... Arguments>
Result call(const char* name, Arguments... arguments) {
  using Function = Result (*)(Arguments...);
  return reinterpret_cast<Function>(dlsym(library, name))(arguments...);
}

void say(const char* name, long value) { std::printf("%s=%ld\n", name, value); }
void say_error(const char* name) { std::printf("%s=%s\n", name, call<const char*>("kunlun_tensorrt_last_error")); }

struct Fields {
  std::vector<PluginField> fields;
  PluginFieldCollection collection{};
  Fields(std::vector<PluginField> given) : fields(std::move(given)) { collection = {static_cast<int32_t>(fields.size()), fields.data()}; }
};

PluginField number(const char* name, const int32_t& value) { return {name, &value, PluginFieldType::kINT32, 1}; }
PluginField number(const char* name, const float& value) { return {name, &value, PluginFieldType::kFLOAT32, 1}; }
PluginField text(const char* name, const char* value) {
  return {name, value, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(value))};
}

IPluginCreatorV3One* creator(const std::string& name) {
  auto entry = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  int32_t count = 0;
  IPluginCreatorInterface* const* all = entry(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* one = static_cast<IPluginCreatorV3One*>(all[i]);
    if (name == one->getPluginName()) return one;
  }
  std::abort();
}

const int32_t zero = 0, one = 1, eight = 8, forty = 40, minus = -1;
const float half = 0.5f, unit = 1.0f, tiny = 1e-5f;

std::vector<PluginField> pffn_fields() {
  return {text("activation", "fast_gelu"), number("n_kv", eight),   number("scale_in", half), number("scale_out", unit),
          number("indexed", one),          number("max_length", forty), number("eps", tiny)};
}

PluginTensorDesc rows(int64_t count, DataType type = DataType::kFLOAT, int64_t heads = 2, int64_t width = 16) {
  PluginTensorDesc desc{};
  desc.dims = Dims{3, {count, heads, width}};
  desc.type = type;
  desc.format = TensorFormat::kLINEAR;
  return desc;
}

PluginTensorDesc vector(int64_t count, DataType type = DataType::kINT32) {
  PluginTensorDesc desc{};
  desc.dims = Dims{1, {count}};
  desc.type = type;
  desc.format = TensorFormat::kLINEAR;
  return desc;
}

IPluginV3OneBuild& build_of(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime& runtime_of(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& all) {
  std::vector<DynamicPluginTensorDesc> made;
  for (const PluginTensorDesc& desc : all) made.push_back({desc, desc.dims, desc.dims, desc.dims});
  return made;
}

bool supported(IPluginV3& plugin, std::vector<PluginTensorDesc> inputs, const PluginTensorDesc& output) {
  const auto count = static_cast<int32_t>(inputs.size());
  inputs.push_back(output);
  const auto all = dynamic(inputs);
  for (int32_t at = 0; at <= count; ++at)
    if (!build_of(plugin).supportsFormatCombination(at, all.data(), count, 1)) return false;
  return true;
}

int32_t types(IPluginV3& plugin, const std::vector<DataType>& given) {
  DataType out{};
  const int32_t result = build_of(plugin).getOutputDataTypes(&out, 1, given.data(), static_cast<int32_t>(given.size()));
  return result ? -result : static_cast<int32_t>(out);
}

int32_t configured(IPluginV3& plugin, const std::vector<PluginTensorDesc>& inputs, const PluginTensorDesc& output) {
  const auto in = dynamic(inputs), out = dynamic({output});
  return build_of(plugin).configurePlugin(in.data(), static_cast<int32_t>(in.size()), out.data(), 1);
}

int32_t shaped(IPluginV3& plugin, const std::vector<PluginTensorDesc>& inputs, const PluginTensorDesc& output) {
  return runtime_of(plugin).onShapeChange(inputs.data(), static_cast<int32_t>(inputs.size()), &output, 1);
}

int32_t enqueued(IPluginV3& plugin, const std::vector<PluginTensorDesc>& inputs, const PluginTensorDesc& output, size_t stream) {
  static const void* const addresses[] = {reinterpret_cast<void*>(0x10000), reinterpret_cast<void*>(0x20000),
                                          reinterpret_cast<void*>(0x30000), reinterpret_cast<void*>(0x50004),
                                          reinterpret_cast<void*>(0x60008), reinterpret_cast<void*>(0x70000)};
  void* out[] = {reinterpret_cast<void*>(0x40000)};
  return runtime_of(plugin).enqueue(inputs.data(), &output, addresses, out, nullptr, reinterpret_cast<cudaStream_t>(stream));
}

std::unique_ptr<IPluginV3> restored(IPluginV3& plugin, const char* name) {
  return std::unique_ptr<IPluginV3>(
      creator(name)->createPlugin("restored", runtime_of(plugin).getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
}

// 30 candidates' rows of 5 samples that read 3 users' blocks.
const std::vector<PluginTensorDesc> pffn_inputs{rows(30), rows(24), rows(24), vector(6), vector(5)};
const std::vector<PluginTensorDesc> pffn_dynamic{rows(-1), rows(-1), rows(-1), vector(-1), vector(-1)};

void refuse(const char* name, std::vector<PluginField> fields, const PluginField& changed) {
  for (PluginField& field : fields)
    if (!std::strcmp(field.name, changed.name)) field = changed;
  Fields given(std::move(fields));
  const std::unique_ptr<IPluginV3> plugin(creator("PFFN")->createPlugin("node", &given.collection, TensorRTPhase::kBUILD));
  if (plugin) std::abort();
  say_error(name);
}

void attributes() {
  refuse("unknown_activation", pffn_fields(), text("activation", "tanh"));
  refuse("negative_n_kv", pffn_fields(), number("n_kv", minus));
  refuse("indexed_40", pffn_fields(), number("indexed", forty));
  refuse("eps_of_zero", pffn_fields(), number("eps", 0.0f));
  refuse("float_n_kv", pffn_fields(), number("n_kv", half));
  Fields nothing({});
  if (creator("WindowAttention")->createPlugin("node", &nothing.collection, TensorRTPhase::kBUILD)) std::abort();
  say_error("no_window");
}

void building(IPluginV3& plugin) {
  using D = DataType;
  for (const auto& [name, type] : {std::pair("f32", D::kFLOAT), {"f16", D::kHALF}, {"bf16", D::kBF16}}) {
    say((std::string("supports_") + name).c_str(),
        supported(plugin, {rows(-1, type), rows(-1, type), rows(-1, type), vector(-1), vector(-1)}, rows(-1, type)));
    say((std::string("type_") + name).c_str(), types(plugin, {type, type, type, D::kINT32, D::kINT32}));
  }
  say("supports_int64_offsets", supported(plugin, {rows(-1), rows(-1), rows(-1), vector(-1, D::kINT64), vector(-1)}, rows(-1)));
  say("supports_mixed", supported(plugin, {rows(-1), rows(-1, D::kHALF), rows(-1), vector(-1), vector(-1)}, rows(-1)));
  say("int64_offsets", types(plugin, {D::kFLOAT, D::kFLOAT, D::kFLOAT, D::kINT64, D::kINT32}));
  say_error("int64_offsets_error");
  say("mixed", types(plugin, {D::kFLOAT, D::kHALF, D::kFLOAT, D::kINT32, D::kINT32}));
  say_error("mixed_error");
  say("missing_input", types(plugin, {D::kFLOAT, D::kFLOAT, D::kFLOAT, D::kINT32}));
  say_error("missing_input_error");
  say("dynamic_heads", configured(plugin, {rows(-1, D::kFLOAT, -1), rows(-1), rows(-1), vector(-1), vector(-1)}, rows(-1)));
  say_error("dynamic_heads_error");
  say("odd_keys", configured(plugin, {rows(-1), rows(21), rows(21), vector(-1), vector(-1)}, rows(-1)));
  say_error("odd_keys_error");
  say("configured", configured(plugin, pffn_dynamic, rows(-1)));
}

void without_driver(IPluginV3& plugin) {
  say("build_shapes", shaped(plugin, pffn_inputs, rows(30)));  // a build may time its layers, and must not need to
  const auto engine = restored(plugin, "PFFN");
  say("attached", runtime_of(*engine).attachToContext(nullptr) != nullptr);
  say_error("attach_error");
  say("runtime_shapes", shaped(*engine, pffn_inputs, rows(30)));
}

// The beginning of `struct launch` in fake_driver.c.
struct Launch {
  unsigned grid[3], block[3], shared, cluster;
  unsigned long long stream;
};

void with_driver(IPluginV3& plugin, const char* driver) {
  void* fake = dlopen(driver, RTLD_NOW | RTLD_GLOBAL);
  if (!fake) std::abort();
  const auto* launches = static_cast<int*>(dlsym(fake, "fake_launches"));
  const auto* modules = static_cast<int*>(dlsym(fake, "fake_modules"));
  const auto* last = static_cast<Launch*>(dlsym(fake, "fake_last"));
  auto engine = restored(plugin, "PFFN");
  auto* current = static_cast<unsigned long long*>(dlsym(fake, "fake_context"));
  *current = 0;  // a thread on which nothing has used CUDA yet
  const std::unique_ptr<IPluginV3> early(runtime_of(*engine).attachToContext(nullptr));
  say("attached_without_context", early != nullptr);
  say("shapes_without_context", shaped(*early, pffn_inputs, rows(30)));
  say_error("shapes_without_context_error");
  *current = 1;
  say("modules_without_context", *modules);
  const long before_clone = allocations;
  const std::unique_ptr<IPluginV3> context(runtime_of(*engine).attachToContext(nullptr));
  say("allocations_of_a_clone", allocations - before_clone);
  say("attached", context != nullptr);
  say("modules_after_attach", *modules);
  say("shapes", shaped(*context, pffn_inputs, rows(30)));
  engine.reset();  // a context's plugin does not need the engine's
  const long before = allocations;
  say("enqueued", enqueued(*context, pffn_inputs, rows(30), 0xABC0));
  say("allocations_in_enqueue", allocations - before);
  say("modules_after_enqueue", *modules);
  say("launches", *launches);
  say("stream", static_cast<long>(last->stream));
  std::printf("grid=%ux%ux%u\n", last->grid[0], last->grid[1], last->grid[2]);
  say("other_users", shaped(*context, {rows(30), rows(24), rows(24), vector(6), vector(4)}, rows(30)));
  say_error("other_users_error");
  say("empty", enqueued(*context, {rows(0), rows(24), rows(24), vector(6), vector(5)}, rows(0), 1));
  say("launches_of_empty", *launches - 1);
  const std::vector<PluginTensorDesc> wide{rows(30, DataType::kFLOAT, 3), rows(24, DataType::kFLOAT, 3), rows(24, DataType::kFLOAT, 3),
                                           vector(6), vector(5)};
  say("not_shipped", shaped(*context, wide, rows(30, DataType::kFLOAT, 3)));
  say_error("not_shipped_error");

  Fields scale({number("scale", half)});
  const std::unique_ptr<IPluginV3> pool(creator("SeedPooling")->createPlugin("pool", &scale.collection, TensorRTPhase::kBUILD));
  const std::vector<PluginTensorDesc> nothing{rows(16), rows(0), rows(0), vector(4)};  // three empty samples
  PluginTensorDesc pooled{};
  pooled.dims = Dims{4, {3, 16, 2, 16}};
  say("pool_shapes", shaped(*pool, nothing, pooled));
  const int so_far = *launches;
  say("pool_enqueued", enqueued(*pool, nothing, pooled, 2));
  say("pool_launches", *launches - so_far);
}

}  // namespace

// Counts every allocation of this thread, also those of the plugin library.
extern "C" void* malloc(size_t size) {
  ++allocations;
  return __libc_malloc(size);
}

int main(int count, char** values) {
  if (count != 3) return 2;
  library = dlopen(values[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  std::printf("manifest=%s\n", call<const char*>("kunlun_tensorrt_manifest"));
  attributes();
  Fields fields(pffn_fields());
  const std::unique_ptr<IPluginV3> plugin(creator("PFFN")->createPlugin("node", &fields.collection, TensorRTPhase::kBUILD));
  if (!plugin) return 2;
  building(*plugin);
  say("driver_opened_by_build", dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD) != nullptr);
  if (std::strcmp(values[2], "none"))
    with_driver(*plugin, values[2]);
  else
    without_driver(*plugin);
  return 0;
}
