#include "attributes.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "kunlun_kernels.h"
#include "log.h"

namespace kunlun::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr const char* kActivations[] = {"raw", "relu", "leaky_relu", "relu_square", "gelu", "fast_gelu", "silu", "hardswish"};
static_assert(sizeof kActivations / sizeof *kActivations == KUNLUN_HARDSWISH + 1, "as kunlun_activation");

constexpr PluginFieldType kTypes[] = {PluginFieldType::kINT32, PluginFieldType::kFLOAT32, PluginFieldType::kCHAR};
constexpr const char* kTypeNames[] = {"an integer", "a number", "a string"};

bool read_activation(const char* op, const Attribute& attribute, const PluginField& field, int32_t& value) {
  std::string text(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  while (!text.empty() && text.back() == '\0') text.pop_back();  // some callers count the terminator
  std::string names;
  for (int32_t code = 0; code <= KUNLUN_HARDSWISH; ++code) {
    if (text == kActivations[code]) return value = code, true;
    names += code ? ", " : "";
    names += kActivations[code];
  }
  report(Severity::kERROR, "%s: %s: expected one of %s, found '%s'", op, attribute.name, names.c_str(), text.c_str());
  return false;
}

bool read_one(const char* op, const Attribute& attribute, const PluginField& field, Attributes& found) {
  const auto kind = static_cast<size_t>(attribute.kind);
  if (field.type != kTypes[kind] || !field.data || field.length < 1 || (attribute.kind != Kind::kActivation && field.length != 1)) {
    report(Severity::kERROR, "%s: %s: expected %s, found a field of type %d and length %d", op, attribute.name, kTypeNames[kind],
           static_cast<int>(field.type), field.length);
    return false;
  }
  if (attribute.kind == Kind::kActivation) return read_activation(op, attribute, field, found.*attribute.integer);
  if (attribute.kind == Kind::kInteger) {
    const int32_t value = *static_cast<const int32_t*>(field.data);
    if (value < attribute.least || value > attribute.most) {
      report(Severity::kERROR, "%s: %s: expected %.0f to %.0f, found %d", op, attribute.name, attribute.least, attribute.most, value);
      return false;
    }
    found.*attribute.integer = value;
    return true;
  }
  const float value = *static_cast<const float*>(field.data);
  if (!(value > attribute.least && value < attribute.most)) {  // also NaN
    report(Severity::kERROR, "%s: %s: expected a number above %g and finite, found %g", op, attribute.name, attribute.least,
           static_cast<double>(value));
    return false;
  }
  found.*attribute.real = value;
  return true;
}

}  // namespace

bool read(const char* op, const std::vector<Attribute>& expected, const nvinfer1::PluginFieldCollection* fields, Attributes& found) {
  for (const Attribute& attribute : expected) {
    const PluginField* given = nullptr;
    for (int32_t i = 0; fields && i < fields->nbFields; ++i)
      if (!std::strcmp(fields->fields[i].name, attribute.name)) given = &fields->fields[i];
    if (!given) {
      report(Severity::kERROR, "%s: %s: expected %s, found no such attribute; export the model and build its engine with this version of kunlun", op,
             attribute.name, kTypeNames[static_cast<size_t>(attribute.kind)]);
      return false;
    }
    if (!read_one(op, attribute, *given, found)) return false;
  }
  return true;
}

std::vector<PluginField> fields_of(const std::vector<Attribute>& expected, const Attributes& attributes) {
  std::vector<PluginField> fields;
  for (const Attribute& attribute : expected) {
    if (attribute.kind == Kind::kActivation) {
      const char* name = kActivations[attributes.*attribute.integer];
      fields.emplace_back(attribute.name, name, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(name)));
    } else if (attribute.kind == Kind::kInteger) {
      fields.emplace_back(attribute.name, &(attributes.*attribute.integer), PluginFieldType::kINT32, 1);
    } else {
      fields.emplace_back(attribute.name, &(attributes.*attribute.real), PluginFieldType::kFLOAT32, 1);
    }
  }
  return fields;
}

std::vector<PluginField> names_of(const std::vector<Attribute>& expected) {
  std::vector<PluginField> fields;
  for (const Attribute& attribute : expected)
    fields.emplace_back(attribute.name, nullptr, kTypes[static_cast<size_t>(attribute.kind)], 1);
  return fields;
}

std::vector<char> text_of(const char* op, const std::vector<Attribute>& expected, const Attributes& attributes) {
  std::string text = op;
  for (const Attribute& attribute : expected) {
    char part[128];
    if (attribute.kind == Kind::kReal)  // as hexadecimal: exact
      std::snprintf(part, sizeof part, ";%s=%a", attribute.name, static_cast<double>(attributes.*attribute.real));
    else
      std::snprintf(part, sizeof part, ";%s=%d", attribute.name, attributes.*attribute.integer);
    text += part;
  }
  return {text.c_str(), text.c_str() + text.size() + 1};
}

}  // namespace kunlun::tensorrt
