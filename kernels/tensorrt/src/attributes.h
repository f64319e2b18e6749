// Attributes of an operator: read from plugin fields, checked, and given back as fields to serialise.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <vector>

namespace kunlun::tensorrt {

// Every attribute that some operator has (kernels/tensorrt/nodes.py), and what the build has found out.
struct Attributes {
  int32_t activation = -1;  // kunlun_activation
  int32_t n_kv = 0;
  int32_t indexed = 0;
  int32_t max_length = 0;
  int32_t window = 0;
  float scale_in = 1, scale_out = 1, scale = 1, eps = 1e-5f;
  // Known after configurePlugin() and kept in the engine, so that its kernel is loaded before the first enqueue().
  int32_t type = -1;  // kunlun_dtype
  int32_t heads = 0, head_width = 0;
};

enum class Kind : int32_t { kInteger, kReal, kActivation };

struct Attribute {
  const char* name;
  Kind kind;
  int32_t Attributes::*integer;
  float Attributes::*real;
  double least, most;  // a real number must be greater than `least`
};

constexpr Attribute integer(const char* name, int32_t Attributes::*member, double most = INT32_MAX, double least = 0) {
  return {name, Kind::kInteger, member, nullptr, least, most};
}
constexpr Attribute real(const char* name, float Attributes::*member, double least) {
  return {name, Kind::kReal, nullptr, member, least, 3.0e38};
}

// Reads all of `expected` from `fields`; reports what is absent, of another type or out of range, and returns false then.
bool read(const char* op, const std::vector<Attribute>& expected, const nvinfer1::PluginFieldCollection* fields, Attributes& found);

// `expected` as fields that point into `attributes`, which must outlive them.
std::vector<nvinfer1::PluginField> fields_of(const std::vector<Attribute>& expected, const Attributes& attributes);

// The plugin fields that the parser may hand over: names and types without data.
std::vector<nvinfer1::PluginField> names_of(const std::vector<Attribute>& expected);

// "name=value;…", the same for equal attributes.
std::vector<char> text_of(const char* op, const std::vector<Attribute>& expected, const Attributes& attributes);

}  // namespace kunlun::tensorrt
