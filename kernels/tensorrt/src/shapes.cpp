#include "shapes.h"

#include <string>

#include "log.h"

namespace kunlun::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

const char* name_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "float32";
    case DataType::kHALF: return "float16";
    case DataType::kBF16: return "bfloat16";
    case DataType::kINT32: return "int32";
    case DataType::kINT64: return "int64";
    case DataType::kINT8: return "int8";
    case DataType::kBOOL: return "bool";
    default: return "another type";
  }
}

std::string text_of(const Dims& dims) {
  std::string text = "[";
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    if (i) text += ", ";
    text += dims.d[i] < 0 ? "?" : std::to_string(dims.d[i]);
  }
  return text + "]";
}

bool known_and_different(int64_t a, int64_t b) { return a >= 0 && b >= 0 && a != b; }

bool check_count(const Operator& op, const std::vector<const char*>& names, int32_t count) {
  if (static_cast<size_t>(count) == names.size()) return true;
  std::string expected;
  for (const char* name : names) expected += (expected.empty() ? "" : ", ") + std::string(name);
  report(Severity::kERROR, "%s: expected the inputs %s, found %d; n_kv and indexed say which there are", op.name, expected.c_str(), count);
  return false;
}

// What the rows of K/V blocks and the index vectors of GDPA must agree on.
bool check_blocks(const Operator& op, const Attributes& a, const Dims* dims) {
  const int64_t keys = dims[1].d[0], samples = dims[kOffsets].d[0] < 0 ? -1 : dims[kOffsets].d[0] - 1;
  if (a.n_kv && keys >= 0 && keys % a.n_kv) {
    report(Severity::kERROR, "%s: k: expected a multiple of n_kv = %d rows, found %lld", op.name, a.n_kv, static_cast<long long>(keys));
    return false;
  }
  int64_t blocks = a.n_kv ? (keys < 0 ? -1 : keys / a.n_kv) : dims[kOffsets + 1].d[0];
  if (!a.n_kv && blocks >= 0) --blocks;
  const Dims* index = a.indexed ? &dims[kOffsets + (a.n_kv ? 1 : 2)] : nullptr;
  if (index && known_and_different(index->d[0], samples)) {
    report(Severity::kERROR, "%s: kv_index: expected an entry for each of %lld samples, found %lld", op.name,
           static_cast<long long>(samples), static_cast<long long>(index->d[0]));
    return false;
  }
  if (!index && known_and_different(blocks, samples)) {
    report(Severity::kERROR, "%s: k: expected a block for each of %lld samples, found %lld; give kv_index with indexed = 1", op.name,
           static_cast<long long>(samples), static_cast<long long>(blocks));
    return false;
  }
  return true;
}

}  // namespace

int32_t dtype_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return KUNLUN_F32;
    case DataType::kHALF: return KUNLUN_F16;
    case DataType::kBF16: return KUNLUN_BF16;
    default: return -1;
  }
}

bool check_types(const Operator& op, const Attributes& attributes, const DataType* types, int32_t count) {
  const std::vector<const char*> names = op.inputs(attributes);
  if (!check_count(op, names, count)) return false;
  if (dtype_of(types[0]) < 0) {
    report(Severity::kERROR, "%s: %s: expected float32, float16 or bfloat16, found %s", op.name, names[0], name_of(types[0]));
    return false;
  }
  for (int32_t i = 1; i < count; ++i) {
    const DataType expected = i < kRowInputs ? types[0] : DataType::kINT32;
    if (types[i] == expected) continue;
    report(Severity::kERROR, "%s: %s: expected %s%s, found %s; cast it in the graph", op.name, names[static_cast<size_t>(i)],
           name_of(expected), i < kRowInputs ? " like the first input" : "", name_of(types[i]));
    return false;
  }
  return true;
}

bool check_dims(const Operator& op, const Attributes& attributes, const Dims* dims, int32_t count) {
  const std::vector<const char*> names = op.inputs(attributes);
  if (!check_count(op, names, count)) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t rank = i < kRowInputs ? 3 : 1;
    if (dims[i].nbDims == rank) continue;
    report(Severity::kERROR, "%s: %s: expected %s, found %s", op.name, names[static_cast<size_t>(i)],
           rank == 3 ? "[rows, heads, head_width]" : "one dimension", text_of(dims[i]).c_str());
    return false;
  }
  for (int32_t i = 0; i < kRowInputs; ++i) {
    const bool is_static = dims[i].d[1] >= 0 && dims[i].d[2] >= 0;
    const bool same_rows = i == 2 || (i == 1 && op.layout == Layout::kSelf);
    const bool rows_differ = same_rows && known_and_different(dims[i].d[0], dims[i - 1].d[0]);
    if (is_static && !rows_differ && dims[i].d[1] == dims[0].d[1] && dims[i].d[2] == dims[0].d[2]) continue;
    report(Severity::kERROR, "%s: %s: expected heads and head_width known when the engine is built, and shapes that agree; found %s beside %s",
           op.name, names[static_cast<size_t>(i)], text_of(dims[i]).c_str(), text_of(dims[i ? i - 1 : 1]).c_str());
    return false;
  }
  return op.layout != Layout::kBlocks || check_blocks(op, attributes, dims);
}

Sizes sizes_of(const nvinfer1::PluginTensorDesc* inputs) {
  const Dims &first = inputs[0].dims, &keys = inputs[1].dims;
  const int64_t offsets = inputs[kOffsets].dims.d[0];
  return {dtype_of(inputs[0].type),
          static_cast<int32_t>(first.d[1]),
          static_cast<int32_t>(first.d[2]),
          static_cast<int32_t>(first.d[0]),
          static_cast<int32_t>(keys.d[0]),
          offsets > 0 ? static_cast<int32_t>(offsets - 1) : 0};
}

}  // namespace kunlun::tensorrt
