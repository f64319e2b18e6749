"""The PFFN block forward as one kernel: one program per Q tile, all heads.

    q̂ = LayerNorm(q);   x = s_out · Act(s_in · q̂ Kᵀ) V + q̂;   out = x · rrms(x) + q

Both norms span the heads, so a tile's heads meet in one program: a first walk over the heads takes mean and
rstd, a second one x_h head by head with Σ x² on the side, a third one scales and adds q. From HBM, q is
read once and out written once; the later walks find the tile in the L2 cache, where eviction hints hold it until the
third. Two things lost on an H100: x kept in registers (an unrolled loop over heads prefetches no K and V), and prefetching in
the walks without products (it costs registers that spill).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gdpa.triton_backward import normed_query
from kernels.gdpa.triton_parts import LAYOUT, SCALARS, attend, block_range, load_rows, row_range, store_rows, work_unit
from kernels.triton_activations import INTERPRETED


@triton.jit
def layer_norm_statistics(
    q_base, rows, length, eps, HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """(mean, rstd) f32 [BLOCK_M] over all heads of each row: moments about the mean per head, merged (Chan et al., 1979)."""
    mean = tl.zeros([BLOCK_M], tl.float32)
    moment = tl.zeros([BLOCK_M], tl.float32)
    for head in tl.range(HEADS, num_stages=1):
        x = load_rows(q_base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D, "evict_last").to(tl.float32)
        head_mean = tl.sum(x, 1) / HEAD_WIDTH
        deviation = x - head_mean[:, None]
        if BLOCK_D != HEAD_WIDTH:
            deviation = tl.where(tl.arange(0, BLOCK_D)[None, :] < HEAD_WIDTH, deviation, 0.0)
        delta = head_mean - mean
        weight = 1.0 / (head + 1.0)
        mean += delta * weight
        moment += tl.sum(deviation * deviation, 1) + delta * delta * (HEAD_WIDTH * head * weight)
    return mean, 1.0 / tl.sqrt(moment / (HEADS * HEAD_WIDTH) + eps)


@triton.jit(do_not_specialize=SCALARS, do_not_specialize_on_alignment=LAYOUT)
def pffn_forward(
    q, k, v, out, mean, rstd, rrms, tiles, q_offsets, q_lengths, k_offsets, kv_index,
    scale_in, scale_out, eps, units_per_sample,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, N_KV: tl.constexpr, CODES: tl.constexpr, PER_HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """q, out [rows, HEADS, HEAD_WIDTH]; mean, rstd, rrms f32 [rows], or all None when no backward follows; grid (units,)."""
    HARDWARE: tl.constexpr = (k.dtype.element_ty != tl.float32) and not INTERPRETED
    ONE_TILE: tl.constexpr = (N_KV > 0) and (N_KV <= BLOCK_N)
    sample, first = work_unit(tiles, tl.program_id(0), units_per_sample, BLOCK_M)
    if sample >= 0:
        start, length = row_range(q_offsets, q_lengths, sample)
        if first < length:
            k_start, n_kv = block_range(k_offsets, kv_index, sample, N_KV)
            rows = first + tl.arange(0, BLOCK_M)
            q_base = q + start * (HEADS * HEAD_WIDTH)
            out_base = out + start * (HEADS * HEAD_WIDTH)
            k_base = k + k_start * (HEADS * HEAD_WIDTH)
            v_base = v + k_start * (HEADS * HEAD_WIDTH)
            mu, inverse_std = layer_norm_statistics(q_base, rows, length, eps, HEADS, HEAD_WIDTH, BLOCK_M, BLOCK_D)
            squares = tl.zeros([BLOCK_M], tl.float32)
            for head in range(HEADS):
                raw = load_rows(q_base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D, "evict_last")
                normed = normed_query(raw, mu, inverse_std, HEAD_WIDTH, BLOCK_D)
                x = scale_out * attend(
                    normed.to(k.dtype.element_ty), rows, k_base, v_base, n_kv, head, scale_in, 0,
                    HEADS, HEAD_WIDTH, CODES, PER_HEAD, False, ONE_TILE, BLOCK_M, BLOCK_N, BLOCK_D, HARDWARE,
                ) + normed  # fmt: skip
                squares += tl.sum(x * x, 1)
                store_rows(out_base, rows, length, head, x, HEADS, HEAD_WIDTH, BLOCK_D, "evict_last")
            inverse_rms = 1.0 / tl.sqrt(squares / (HEADS * HEAD_WIDTH) + eps)
            tl.debug_barrier()  # x is read back below, perhaps by another thread than stored it
            for head in tl.range(HEADS, num_stages=1):
                raw = load_rows(q_base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D, "evict_first")
                x = load_rows(out_base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D, "evict_first").to(tl.float32)
                y = x * inverse_rms[:, None] + raw.to(tl.float32)
                store_rows(out_base, rows, length, head, y, HEADS, HEAD_WIDTH, BLOCK_D, "evict_first")
            if mean is not None:
                inside = rows < length
                tl.store(mean + start + rows, mu, mask=inside)
                tl.store(rstd + start + rows, inverse_std, mask=inside)
                tl.store(rrms + start + rows, inverse_rms, mask=inside)
