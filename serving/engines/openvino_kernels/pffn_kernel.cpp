#include "pffn_kernel.hpp"

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace kunlun {
namespace {

constexpr std::size_t LANES = 16, ROWS = 6, TILE = 16;

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")))
#define INLINE inline __attribute__((always_inline))

// 1 / (1 + 2^t) for t ≤ 126, to about 1e-7.
AVX512 INLINE __m512 inverse_of_one_plus_exp2(__m512 t) {
    t = _mm512_min_ps(t, _mm512_set1_ps(126.0f));
    const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(t, whole);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);  // 2^f on [-½, ½]
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    const __m512 d = _mm512_add_ps(_mm512_scalef_ps(p, whole), _mm512_set1_ps(1.0f));
    const __m512 guess = _mm512_rcp14_ps(d);
    return _mm512_mul_ps(guess, _mm512_fnmadd_ps(d, guess, _mm512_set1_ps(2.0f)));
}

template <Activation A>
AVX512 INLINE __m512 activate(__m512 x) {
    if constexpr (A == Activation::relu) return _mm512_max_ps(x, _mm512_setzero_ps());
    if constexpr (A == Activation::gelu_tanh) {  // ½x(1 + tanh u) = x / (1 + e^−2u), u = √(2/π)(x + 0.044715x³)
        const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.10294324f), _mm512_set1_ps(-2.3022082f));
        return _mm512_mul_ps(x, inverse_of_one_plus_exp2(_mm512_mul_ps(x, inner)));
    }
    if constexpr (A == Activation::silu)
        return _mm512_mul_ps(x, inverse_of_one_plus_exp2(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f))));
    return x;
}

// C[R, 16·Z] (+ activation) = A[R, depth] · B[depth, 16·Z]; rows of A at `a_row`, of B at `b_row`, of C at `c_row` floats.
template <std::size_t R, std::size_t Z, Activation A>
AVX512 INLINE void product(
    const float* a, std::size_t a_row, const float* b, std::size_t b_row, float* c, std::size_t c_row, std::size_t depth) {
    __m512 sum[R][Z];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (std::size_t z = 0; z < Z; ++z) sum[r][z] = _mm512_setzero_ps();
    for (std::size_t k = 0; k < depth; ++k) {
        __m512 right[Z];
#pragma GCC unroll 8
        for (std::size_t z = 0; z < Z; ++z) right[z] = _mm512_loadu_ps(b + k * b_row + z * LANES);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < R; ++r) {
            const __m512 left = _mm512_set1_ps(a[r * a_row + k]);
#pragma GCC unroll 8
            for (std::size_t z = 0; z < Z; ++z) sum[r][z] = _mm512_fmadd_ps(left, right[z], sum[r][z]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (std::size_t z = 0; z < Z; ++z) _mm512_storeu_ps(c + r * c_row + z * LANES, activate<A>(sum[r][z]));
}

template <std::size_t R, Activation A>
AVX512 void product_rows(
    const float* a, std::size_t a_row, const float* b, std::size_t columns, float* c, std::size_t c_row, std::size_t depth) {
    std::size_t n = 0;
    for (; n + 4 * LANES <= columns; n += 4 * LANES) product<R, 4, A>(a, a_row, b + n, columns, c + n, c_row, depth);
    for (; n < columns; n += LANES) product<R, 1, A>(a, a_row, b + n, columns, c + n, c_row, depth);
}

AVX512 INLINE float total(__m512 x) { return _mm512_reduce_add_ps(x); }

// LayerNorm of one row without weights; `width` a multiple of 16.
AVX512 INLINE void layer_norm(const float* x, float* y, std::size_t width, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t i = 0; i < width; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
    const __m512 mean = _mm512_set1_ps(total(sum) / static_cast<float>(width));
    __m512 squares = _mm512_setzero_ps();
    for (std::size_t i = 0; i < width; i += LANES) {
        const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        squares = _mm512_fmadd_ps(centred, centred, squares);
        _mm512_storeu_ps(y + i, centred);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(total(squares) / static_cast<float>(width) + eps));
    for (std::size_t i = 0; i < width; i += LANES) _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_loadu_ps(y + i), scale));
}

// out = RMSNorm(g + q̂) + q of one row; g is overwritten.
AVX512 INLINE void finish(float* g, const float* normed, const float* q, float* out, std::size_t width, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (std::size_t i = 0; i < width; i += LANES) {
        const __m512 x = _mm512_add_ps(_mm512_loadu_ps(g + i), _mm512_loadu_ps(normed + i));
        squares = _mm512_fmadd_ps(x, x, squares);
        _mm512_storeu_ps(g + i, x);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(total(squares) / static_cast<float>(width) + eps));
    for (std::size_t i = 0; i < width; i += LANES)
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(_mm512_loadu_ps(g + i), scale, _mm512_loadu_ps(q + i)));
}

template <std::size_t R, Activation A>
AVX512 void heads_f32(const Block& b, const float* k, const float* v, const float* normed, float* hidden, float* g) {
    for (std::size_t h = 0; h < b.heads; ++h) {
        const std::size_t at = h * b.width, matrix = h * b.width * b.keys;
        product_rows<R, A>(normed + at, b.row(), k + matrix, b.keys, hidden, b.keys, b.width);
        product_rows<R, Activation::none>(hidden, b.keys, v + matrix, b.width, g + at, b.row(), b.keys);
    }
}

template <Activation A>
AVX512 void rows_f32(const Block& b, const Packed& packed, const float* q, float* out, std::size_t count) {
    const auto* k = static_cast<const float*>(packed.k());
    const auto* v = static_cast<const float*>(packed.v());
    std::vector<float> normed(ROWS * b.row()), hidden(ROWS * b.keys), g(ROWS * b.row());
    for (std::size_t first = 0; first < count; first += ROWS) {
        const std::size_t rows = std::min(ROWS, count - first);
        for (std::size_t r = 0; r < rows; ++r) layer_norm(q + (first + r) * b.row(), &normed[r * b.row()], b.row(), b.eps);
        if (rows == ROWS)
            heads_f32<ROWS, A>(b, k, v, normed.data(), hidden.data(), g.data());
        else
            for (std::size_t r = 0; r < rows; ++r)
                heads_f32<1, A>(b, k, v, &normed[r * b.row()], hidden.data(), &g[r * b.row()]);
        for (std::size_t r = 0; r < rows; ++r)
            finish(&g[r * b.row()], &normed[r * b.row()], q + (first + r) * b.row(), out + (first + r) * b.row(), b.row(), b.eps);
    }
}

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};
};

AMX void configure_tiles() {
    TileConfig config;
    for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = TILE;
    _tile_loadconfig(&config);
}

// C[16, 64] f32 = A[16, depth] bf16 · B in pairs [depth / 2, columns, 2] bf16; strides in bytes.
template <int Z>
AMX INLINE void tile_product(
    const std::uint16_t* a, std::size_t a_stride, const std::uint16_t* b, std::size_t b_stride, float* c, std::size_t c_stride,
    std::size_t depth) {
    _tile_zero(0);
    if constexpr (Z == 4) { _tile_zero(1); _tile_zero(2); _tile_zero(3); }
    for (std::size_t k = 0; k < depth; k += 32) {
        const auto* right = reinterpret_cast<const char*>(b) + (k / 2) * b_stride;
        _tile_loadd(4, a + k, a_stride);
        _tile_loadd(5, right, b_stride);
        _tile_dpbf16ps(0, 4, 5);
        if constexpr (Z == 4) {
            _tile_loadd(6, right + 64, b_stride);
            _tile_dpbf16ps(1, 4, 6);
            _tile_loadd(7, right + 128, b_stride);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, right + 192, b_stride);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, c, c_stride);
    if constexpr (Z == 4) {
        _tile_stored(1, c + 16, c_stride);
        _tile_stored(2, c + 32, c_stride);
        _tile_stored(3, c + 48, c_stride);
    }
}

AMX INLINE void tile_rows(
    const std::uint16_t* a, std::size_t a_row, const std::uint16_t* b, std::size_t columns, float* c, std::size_t c_row,
    std::size_t depth) {
    std::size_t n = 0;
    for (; n + 64 <= columns; n += 64) tile_product<4>(a, 2 * a_row, b + 2 * n, 4 * columns, c + n, 4 * c_row, depth);
    for (; n < columns; n += 16) tile_product<1>(a, 2 * a_row, b + 2 * n, 4 * columns, c + n, 4 * c_row, depth);
}

AMX INLINE void to_bf16(const float* x, std::uint16_t* y, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 32) {
        const __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + LANES), _mm512_loadu_ps(x + i));
        _mm512_storeu_si512(y + i, reinterpret_cast<const __m512i&>(pair));
    }
}

template <Activation A>
AMX INLINE void activate_to_bf16(const float* scores, std::uint16_t* hidden, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 32) {
        const __m512 low = activate<A>(_mm512_loadu_ps(scores + i));
        const __m512 high = activate<A>(_mm512_loadu_ps(scores + i + LANES));
        const __m512bh pair = _mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_si512(hidden + i, reinterpret_cast<const __m512i&>(pair));
    }
}

// The order of the steps keeps the tile unit and the vector units busy at once: each tile product is issued before vector
// work that does not need it (the activation of the head before, the norms of the rows after), which then fills its latency.
template <Activation A>
AMX void rows_bf16(const Block& b, const Packed& packed, const float* q, float* out, std::size_t count) {
    const auto* k = static_cast<const std::uint16_t*>(packed.k());
    const auto* v = static_cast<const std::uint16_t*>(packed.v());
    const std::size_t row = b.row(), matrix = b.width * b.keys;
    std::vector<float> normed[2], scores[2], g(TILE * row);
    std::vector<std::uint16_t> narrow[2], hidden(TILE * b.keys);
    for (int side = 0; side < 2; ++side) {
        normed[side].resize(TILE * row);
        narrow[side].resize(TILE * row);
        scores[side].resize(TILE * b.keys);
    }
    const auto norm = [&](std::size_t first) AMX {
        const std::size_t side = (first / TILE) % 2, rows = first < count ? std::min(TILE, count - first) : 0;
        for (std::size_t r = 0; r < rows; ++r) {
            layer_norm(q + (first + r) * row, &normed[side][r * row], row, b.eps);
            to_bf16(&normed[side][r * row], &narrow[side][r * row], row);
        }
    };
    configure_tiles();
    norm(0);
    for (std::size_t first = 0; first < count; first += TILE) {
        const std::size_t side = (first / TILE) % 2, rows = std::min(TILE, count - first);
        const std::uint16_t* queries = narrow[side].data();
        tile_rows(queries, row, k, b.keys, scores[0].data(), b.keys, b.width);
        for (std::size_t h = 0; h < b.heads; ++h) {
            if (h + 1 < b.heads)
                tile_rows(queries + (h + 1) * b.width, row, k + (h + 1) * matrix, b.keys, scores[(h + 1) % 2].data(), b.keys, b.width);
            activate_to_bf16<A>(scores[h % 2].data(), hidden.data(), rows * b.keys);
            tile_rows(hidden.data(), b.keys, v + h * matrix, b.width, &g[h * b.width], row, b.keys);
        }
        norm(first + TILE);
        for (std::size_t r = 0; r < rows; ++r)
            finish(&g[r * row], &normed[side][r * row], q + (first + r) * row, out + (first + r) * row, row, b.eps);
    }
    _tile_release();
}

template <Activation A>
void rows_of(const Block& b, bool bf16, const Packed& packed, const float* q, float* out, std::size_t count) {
    bf16 ? rows_bf16<A>(b, packed, q, out, count) : rows_f32<A>(b, packed, q, out, count);
}

// Two vectors as pairs of bf16, a in the low halves.
AMX INLINE __m512i bf16_pairs(__m512 a, __m512 b) {
    const __m256bh low = _mm512_cvtneps_pbh(a), high = _mm512_cvtneps_pbh(b);
    const __m512i even = _mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(low));
    const __m512i odd = _mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(high));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

// One head: k and v point at its first element, rows are `row` floats apart.
AVX512 void pack_f32(const Block& b, const float* k, const float* v, float* packed_k, float* packed_v) {
    const std::size_t row = b.row();
    const __m512 in = _mm512_set1_ps(b.scale_in), out = _mm512_set1_ps(b.scale_out);
    const __m512i down = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(static_cast<int>(row)));
    for (std::size_t j = 0; j < b.width; ++j)
        for (std::size_t n = 0; n < b.keys; n += LANES)
            _mm512_storeu_ps(packed_k + j * b.keys + n, _mm512_mul_ps(in, _mm512_i32gather_ps(down, k + n * row + j, 4)));
    for (std::size_t n = 0; n < b.keys; ++n)
        for (std::size_t j = 0; j < b.width; j += LANES)
            _mm512_storeu_ps(packed_v + n * b.width + j, _mm512_mul_ps(out, _mm512_loadu_ps(v + n * row + j)));
}

// The same in pairs along the dimension that is summed over.
AMX void pack_bf16(const Block& b, const float* k, const float* v, std::uint16_t* packed_k, std::uint16_t* packed_v) {
    const std::size_t row = b.row();
    const __m512 in = _mm512_set1_ps(b.scale_in), out = _mm512_set1_ps(b.scale_out);
    const __m512i down = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(static_cast<int>(row)));
    for (std::size_t j = 0; j < b.width; j += 2)
        for (std::size_t n = 0; n < b.keys; n += LANES) {
            const float* at = k + n * row + j;
            const __m512 even = _mm512_mul_ps(in, _mm512_i32gather_ps(down, at, 4));
            const __m512 odd = _mm512_mul_ps(in, _mm512_i32gather_ps(down, at + 1, 4));
            _mm512_storeu_si512(packed_k + (j / 2 * b.keys + n) * 2, bf16_pairs(even, odd));
        }
    for (std::size_t n = 0; n < b.keys; n += 2)
        for (std::size_t j = 0; j < b.width; j += LANES) {
            const float* at = v + n * row + j;
            const __m512 even = _mm512_mul_ps(out, _mm512_loadu_ps(at)), odd = _mm512_mul_ps(out, _mm512_loadu_ps(at + row));
            _mm512_storeu_si512(packed_v + (n / 2 * b.width + j) * 2, bf16_pairs(even, odd));
        }
}

}  // namespace

bool Block::supported(bool bf16) const {
    const std::size_t unit = bf16 ? 32 : 16;
    const bool known = activation >= Activation::relu && activation <= Activation::silu;
    return known && heads > 0 && width % unit == 0 && keys % unit == 0;
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

bool has_amx_bf16() {
    std::uint32_t a = 7, b = 0, c = 0, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
    const bool tiles = (d >> 24) & 1, products = (d >> 22) & 1;
    constexpr long request_permission = 0x1023, tile_data = 18;
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && tiles && products && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

Packed::Packed(const Block& b, bool bf16, const float* k, const float* v)
    : k_(b.row() * b.keys / (bf16 ? 2 : 1)), v_(k_.size()) {
    for (std::size_t h = 0; h < b.heads; ++h) {
        const std::size_t matrix = h * b.width * b.keys;
        if (bf16)
            pack_bf16(b, k + h * b.width, v + h * b.width, reinterpret_cast<std::uint16_t*>(k_.data()) + matrix,
                      reinterpret_cast<std::uint16_t*>(v_.data()) + matrix);
        else
            pack_f32(b, k + h * b.width, v + h * b.width, k_.data() + matrix, v_.data() + matrix);
    }
}

void pffn_rows(const Block& b, bool bf16, const Packed& packed, const float* q, float* out, std::size_t count) {
    switch (b.activation) {
        case Activation::none: return;  // not supported()
        case Activation::relu: return rows_of<Activation::relu>(b, bf16, packed, q, out, count);
        case Activation::gelu_tanh: return rows_of<Activation::gelu_tanh>(b, bf16, packed, q, out, count);
        case Activation::silu: return rows_of<Activation::silu>(b, bf16, packed, q, out, count);
    }
}

}  // namespace kunlun
