// What an operator is to TensorRT: attributes, inputs, and calls of the launcher library.
#pragma once

#include <vector>

#include "attributes.h"
#include "kunlun_kernels.h"

namespace kunlun::tensorrt {

constexpr const char* kNamespace = "kunlun";
constexpr const char* kVersion = "1";

// Every operator has three tensors of rows [·, heads, head_width] of one type, then int32 vectors, offsets first; one output.
constexpr int32_t kRowInputs = 3;
constexpr int32_t kOffsets = 3;

// Sizes of one call.
struct Sizes {
  int32_t type;  // kunlun_dtype
  int32_t heads, head_width;
  int32_t queries;  // rows of input 0: q or seeds
  int32_t keys;     // rows of inputs 1 and 2
  int32_t samples;
};

// kBlocks: q beside blocks of K/V, output like q. kSelf: q, k and v are the same rows, output like them. kPooled: seeds beside
// rows of K/V, output [samples, seeds, heads, head_width].
enum class Layout : int32_t { kBlocks, kSelf, kPooled };

struct Operator {
  const char* name;
  std::vector<Attribute> attributes;
  Layout layout;
  // Names of the inputs, in order.
  std::vector<const char*> (*inputs)(const Attributes&);
  kunlun_status (*prepare)(const Attributes&, const Sizes&);
  kunlun_status (*launch)(const Attributes&, const Sizes&, void const* const* inputs, void* output, kunlun_stream);
};

// GDPA, PFFN, WindowAttention, SeedPooling.
const std::vector<Operator>& operators();

}  // namespace kunlun::tensorrt
