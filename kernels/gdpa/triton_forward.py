"""GDPA forward on CUDA: one program per (work unit of Q rows, head).

Short K/V (one tile): K and V are loaded once and stay on chip while the program walks over the Q tiles of
its unit, so the loop that hides memory latency is the one over Q tiles. Longer K/V: one Q tile per
unit, and the loop runs over K/V tiles. No running maximum, no rescaling, no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gdpa.triton_parts import (
    LAYOUT,
    SCALARS,
    attend,
    block_range,
    load_rows,
    row_range,
    scores_tile,
    store_rows,
    work_unit,
)
from kernels.triton_activations import INTERPRETED, activate, product


@triton.jit(do_not_specialize=SCALARS, do_not_specialize_on_alignment=LAYOUT)
def gdpa_forward(
    q, k, v, out, tiles, q_offsets, q_lengths, k_offsets, kv_index, scale_in, scale_out, units_per_sample, window,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, N_KV: tl.constexpr, SHARED_Q: tl.constexpr, WINDOWED: tl.constexpr,
    CODES: tl.constexpr, PER_HEAD: tl.constexpr, UNIT_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """q, out [rows, HEADS, HEAD_WIDTH], k and v likewise; grid (units, HEADS). Pointers may be None as in `work_unit`,
    `row_range`, `block_range`. N_KV 0: jagged K/V. SHARED_Q: q_offsets is [0, n] and sample b writes rows b · n …"""
    HARDWARE: tl.constexpr = (k.dtype.element_ty != tl.float32) and not INTERPRETED
    RESIDENT: tl.constexpr = (N_KV > 0) and (N_KV <= BLOCK_N) and not WINDOWED
    sample, first = work_unit(tiles, tl.program_id(0), units_per_sample, UNIT_TILES * BLOCK_M)
    if sample >= 0:
        head = tl.program_id(1)
        if SHARED_Q:
            start, length = row_range(q_offsets, q_lengths, 0)
            out_start = start + sample.to(tl.int64) * length
        else:
            start, length = row_range(q_offsets, q_lengths, sample)
            out_start = start
        k_start, n_kv = block_range(k_offsets, kv_index, sample, N_KV)
        q_base = q + start * (HEADS * HEAD_WIDTH)
        out_base = out + out_start * (HEADS * HEAD_WIDTH)
        k_base = k + k_start * (HEADS * HEAD_WIDTH)
        v_base = v + k_start * (HEADS * HEAD_WIDTH)
        last = tl.minimum(first + UNIT_TILES * BLOCK_M, length)
        if RESIDENT:
            n = tl.arange(0, BLOCK_N)
            k_tile = load_rows(k_base, n, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
            v_tile = load_rows(v_base, n, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
            for m in range(first, last, BLOCK_M):
                rows = m + tl.arange(0, BLOCK_M)
                q_tile = load_rows(q_base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(k.dtype.element_ty)
                p = activate(scores_tile(q_tile, k_tile, scale_in), head, CODES, PER_HEAD, HEADS, HARDWARE)
                acc = product(p.to(v_tile.dtype), v_tile, v_tile.dtype == tl.float32) * scale_out
                store_rows(out_base, rows, length, head, acc, HEADS, HEAD_WIDTH, BLOCK_D)
        else:
            for m in range(first, last, BLOCK_M):
                rows = m + tl.arange(0, BLOCK_M)
                q_tile = load_rows(q_base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(k.dtype.element_ty)
                acc = attend(
                    q_tile, rows, k_base, v_base, n_kv, head, scale_in, window,
                    HEADS, HEAD_WIDTH, CODES, PER_HEAD, WINDOWED, False, BLOCK_M, BLOCK_N, BLOCK_D, HARDWARE,
                )  # fmt: skip
                store_rows(out_base, rows, length, head, acc * scale_out, HEADS, HEAD_WIDTH, BLOCK_D)
