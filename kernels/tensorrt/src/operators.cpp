// The parameter structs of the launcher library (kunlun_kernels.h) from attributes, sizes and addresses.
#include "operators.h"

#include <algorithm>

namespace kunlun::tensorrt {
namespace {

using A = Attributes;

const int32_t* index(const void* address) { return static_cast<const int32_t*>(address); }

// The longest sample there can be: too much costs empty blocks, too little would leave rows out.
int32_t longest(const A& a, const Sizes& sizes) { return a.max_length ? std::min(a.max_length, sizes.queries) : sizes.queries; }

// Tensors without rows may come without an address. Nothing of them is read, but the launcher wants one.
const void* rows(const void* address, const void* instead, int32_t count) { return count ? address : instead; }

kunlun_gdpa_params gdpa(const A& a, const Sizes& sizes, bool block) {
  kunlun_gdpa_params p{};
  p.version = KUNLUN_GDPA_PARAMS_V1;
  p.dtype = sizes.type;
  p.activation = a.activation;
  p.block = block;
  p.max_length = longest(a, sizes);
  p.samples = sizes.samples;
  p.heads = sizes.heads;
  p.head_width = sizes.head_width;
  p.n_kv = a.n_kv;
  p.scale_in = a.scale_in;
  p.scale_out = a.scale_out;
  p.eps = a.eps;
  return p;
}

template <bool block>
kunlun_status prepare_gdpa(const A& a, const Sizes& sizes) {
  const kunlun_gdpa_params p = gdpa(a, sizes, block);
  return kunlun_gdpa_prepare(&p);
}

template <bool block>
kunlun_status launch_gdpa(const A& a, const Sizes& sizes, void const* const* in, void* out, kunlun_stream stream) {
  kunlun_gdpa_params p = gdpa(a, sizes, block);
  p.q = in[0], p.k = rows(in[1], in[0], sizes.keys), p.v = rows(in[2], in[0], sizes.keys), p.out = out;
  int32_t next = kOffsets;
  p.q_offsets = index(in[next++]);
  if (!a.n_kv) p.k_offsets = index(in[next++]);
  if (a.indexed) p.kv_index = index(in[next++]);
  return kunlun_gdpa_forward(&p, stream);
}

std::vector<const char*> gdpa_inputs(const A& a) {
  std::vector<const char*> names{"q", "k", "v", "q_offsets"};
  if (!a.n_kv) names.push_back("k_offsets");
  if (a.indexed) names.push_back("kv_index");
  return names;
}

kunlun_window_params window(const A& a, const Sizes& sizes) {
  kunlun_window_params p{};
  p.version = KUNLUN_WINDOW_PARAMS_V1;
  p.dtype = sizes.type;
  p.max_length = longest(a, sizes);
  p.samples = sizes.samples;
  p.heads = sizes.heads;
  p.head_width = sizes.head_width;
  p.window = std::min(a.window, sizes.queries);
  p.q_row = p.k_row = p.v_row = sizes.heads * sizes.head_width;
  p.q_head = p.k_head = p.v_head = sizes.head_width;
  p.scale = a.scale;
  return p;
}

kunlun_status prepare_window(const A& a, const Sizes& sizes) {
  const kunlun_window_params p = window(a, sizes);
  return kunlun_window_prepare(&p);
}

kunlun_status launch_window(const A& a, const Sizes& sizes, void const* const* in, void* out, kunlun_stream stream) {
  kunlun_window_params p = window(a, sizes);
  p.q = in[0], p.k = in[1], p.v = in[2], p.out = out;
  p.offsets = index(in[kOffsets]);
  return kunlun_window_forward(&p, stream);
}

kunlun_seed_pooling_params seed_pooling(const A& a, const Sizes& sizes) {
  kunlun_seed_pooling_params p{};
  p.version = KUNLUN_SEED_POOLING_PARAMS_V1;
  p.dtype = sizes.type;
  p.samples = sizes.samples;
  p.n_seeds = sizes.queries;
  p.heads = sizes.heads;
  p.head_width = sizes.head_width;
  p.k_row = p.v_row = sizes.heads * sizes.head_width;
  p.k_head = p.v_head = sizes.head_width;
  p.scale = a.scale;
  return p;
}

kunlun_status prepare_seed_pooling(const A& a, const Sizes& sizes) {
  const kunlun_seed_pooling_params p = seed_pooling(a, sizes);
  return kunlun_seed_pooling_prepare(&p);
}

kunlun_status launch_seed_pooling(const A& a, const Sizes& sizes, void const* const* in, void* out, kunlun_stream stream) {
  kunlun_seed_pooling_params p = seed_pooling(a, sizes);
  p.seeds = in[0], p.k = rows(in[1], in[0], sizes.keys), p.v = rows(in[2], in[0], sizes.keys), p.out = out;
  p.offsets = index(in[kOffsets]);
  return kunlun_seed_pooling_forward(&p, stream);
}

std::vector<const char*> window_inputs(const A&) { return {"q", "k", "v", "offsets"}; }
std::vector<const char*> seed_pooling_inputs(const A&) { return {"seeds", "k", "v", "offsets"}; }

std::vector<Attribute> gdpa_attributes() {
  return {
      {"activation", Kind::kActivation, &A::activation, nullptr, 0, 0},
      integer("n_kv", &A::n_kv),
      real("scale_in", &A::scale_in, -3.0e38),
      real("scale_out", &A::scale_out, -3.0e38),
      integer("indexed", &A::indexed, 1),
      integer("max_length", &A::max_length),
  };
}

std::vector<Attribute> with(std::vector<Attribute> attributes, const Attribute& more) {
  attributes.push_back(more);
  return attributes;
}

}  // namespace

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all{
      {"GDPA", gdpa_attributes(), Layout::kBlocks, gdpa_inputs, prepare_gdpa<false>, launch_gdpa<false>},
      {"PFFN", with(gdpa_attributes(), real("eps", &A::eps, 0)), Layout::kBlocks, gdpa_inputs, prepare_gdpa<true>, launch_gdpa<true>},
      {"WindowAttention",
       {integer("window", &A::window), real("scale", &A::scale, 0), integer("max_length", &A::max_length)},
       Layout::kSelf,
       window_inputs,
       prepare_window,
       launch_window},
      {"SeedPooling", {real("scale", &A::scale, 0)}, Layout::kPooled, seed_pooling_inputs, prepare_seed_pooling, launch_seed_pooling},
  };
  return all;
}

}  // namespace kunlun::tensorrt
