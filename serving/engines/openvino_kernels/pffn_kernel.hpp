// The PFFN block of a run of rows on one core, f32 (AVX-512) or with bf16 products (AMX):
//
//     q̂ = LayerNorm(q);  g_h = s_out · Act(s_in · q̂_h K_hᵀ) V_h;  out = RMSNorm(g + q̂) + q        (arXiv:2602.10016)
//
// Scores never leave the core's caches and the norms ride along, where a graph of single operators writes and reads
// everything between them. A row's sums run over its own elements in a fixed order, whatever rows stand beside it: a
// score has the same bits alone and in any batch.
#pragma once

#include <cstddef>
#include <vector>

namespace kunlun {

enum class Activation { none = 0, relu = 1, gelu_tanh = 2, silu = 3 };  // none: inside, of the second product

struct Block {
    std::size_t heads, width, keys;  // width: of one head
    Activation activation;
    float scale_in, scale_out, eps;

    std::size_t row() const { return heads * width; }
    bool supported(bool bf16) const;  // a known activation and the tiles' multiples: 16 in f32, 32 in bf16
};

bool has_avx512();
bool has_amx_bf16();  // also asks the system for the tile registers

// K and V of one sample, [keys, heads, width] each, in the layout of the products; scales folded in.
class Packed {
public:
    Packed(const Block& block, bool bf16, const float* k, const float* v);
    const void* k() const { return k_.data(); }
    const void* v() const { return v_.data(); }

private:
    std::vector<float> k_, v_;  // storage; holds bf16 pairs when bf16
};

// rows of q [count, heads · width] → out, the same shape.
void pffn_rows(const Block& block, bool bf16, const Packed& packed, const float* q, float* out, std::size_t count);

}  // namespace kunlun
