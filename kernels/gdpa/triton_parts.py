"""Pieces that the Triton kernels of GDPA and of the PFFN block share: rows of a head, work units, one Q tile against K/V.

A tile is [rows, BLOCK_D] of one head, where BLOCK_D is the head width rounded up to a power of two and the
surplus is zero. Rows beyond a sample and keys beyond a block load as zeros; since Act(0) = 0 and zero
K/V rows multiply whatever they meet by zero, no length mask is needed in forward or backward. Only the
window masks scores (and, because Act′(0) may be ½, their derivative too).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_activations import activate, activate_derivative, product
from kernels.triton_index import load_index

# Arguments on whose values or alignment no kernel is specialised, so that one compiled kernel serves every batch.
SCALARS = ["units_per_sample", "units_per_block", "window", "queries", "samples", "groups"]
LAYOUT = ["tiles", "q_offsets", "q_lengths", "k_offsets", "kv_index", "reader_offsets", "readers", "mean", "rstd", "rrms"]
NO_HINT = tl.constexpr("")  # Triton 3.6 makes constants of numbers among the default values, not of strings


@triton.jit
def load_rows(base, rows, limit, head, HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
              EVICTION: tl.constexpr = NO_HINT):  # fmt: skip
    """rows [R] of one head as [R, BLOCK_D]; zero where row ≥ limit. `base` points at row 0 of the sample."""
    d = tl.arange(0, BLOCK_D)
    mask = rows[:, None] < limit
    if BLOCK_D != HEAD_WIDTH:
        mask = mask & (d[None, :] < HEAD_WIDTH)
    pointers = base + rows[:, None] * (HEADS * HEAD_WIDTH) + (head * HEAD_WIDTH + d[None, :])
    return tl.load(pointers, mask=mask, other=0.0, eviction_policy=EVICTION)


@triton.jit
def store_rows(base, rows, limit, head, x, HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
               EVICTION: tl.constexpr = NO_HINT):  # fmt: skip
    """Store x [R, BLOCK_D] as rows of one head, those below `limit`, in the element type of `base`."""
    d = tl.arange(0, BLOCK_D)
    mask = rows[:, None] < limit
    if BLOCK_D != HEAD_WIDTH:
        mask = mask & (d[None, :] < HEAD_WIDTH)
    pointers = base + rows[:, None] * (HEADS * HEAD_WIDTH) + (head * HEAD_WIDTH + d[None, :])
    tl.store(pointers, x.to(base.dtype.element_ty), mask=mask, eviction_policy=EVICTION)


@triton.jit
def work_unit(tiles, unit, units_per_sample, UNIT_ROWS: tl.constexpr):
    """(sample, first row) of a program: from the work list, or by counting `units_per_sample`; sample −1: nothing to do."""
    sample = load_index(tiles, 2 * unit, unit // units_per_sample)
    first = load_index(tiles, 2 * unit + 1, (unit % units_per_sample) * UNIT_ROWS)
    return sample, first


@triton.jit
def row_range(offsets, lengths, sample):
    """(first row int64, rows) of a sample: from offsets, with `lengths` for rows that are padded behind."""
    start = tl.load(offsets + sample)
    length = load_index(lengths, sample, tl.load(offsets + sample + 1) - start)
    return start.to(tl.int64), length


@triton.jit
def block_range(k_offsets, kv_index, sample, N_KV: tl.constexpr):
    """(first row int64, rows) of the K/V block that a sample reads; N_KV 0: jagged blocks."""
    block = load_index(kv_index, sample, sample)
    if k_offsets is None:
        start = block.to(tl.int64) * N_KV
        length = block * 0 + N_KV
    else:
        begin = tl.load(k_offsets + block)
        length = tl.load(k_offsets + block + 1) - begin
        start = begin.to(tl.int64)
    return start, length


@triton.jit
def scores_tile(q, k, scale_in):
    """s_in · q kᵀ in f32; q in the element type of k."""
    return product(q, tl.trans(k), q.dtype == tl.float32) * scale_in


@triton.jit
def attend(
    q, rows, k_base, v_base, n_kv, head, scale_in, window,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, CODES: tl.constexpr, PER_HEAD: tl.constexpr, WINDOWED: tl.constexpr,
    ONE_TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Act(s_in · q Kᵀ) V of one Q tile (rows are positions in the sample) → f32 [BLOCK_M, BLOCK_D], without s_out."""
    n = tl.arange(0, BLOCK_N)
    if ONE_TILE:
        k = load_rows(k_base, n, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
        v = load_rows(v_base, n, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
        p = activate(scores_tile(q, k, scale_in), head, CODES, PER_HEAD, HEADS, HARDWARE)
        acc = product(p.to(v.dtype), v, v.dtype == tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        low = n_kv * 0
        high = n_kv
        if WINDOWED:
            low = tl.maximum(tl.min(rows) - window, 0) // BLOCK_N * BLOCK_N
            high = tl.minimum(tl.max(rows) + window + 1, n_kv)
        for first in range(low, high, BLOCK_N):
            keys = first + n
            k = load_rows(k_base, keys, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
            v = load_rows(v_base, keys, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
            p = activate(scores_tile(q, k, scale_in), head, CODES, PER_HEAD, HEADS, HARDWARE)
            if WINDOWED:
                p = tl.where(tl.abs(rows[:, None] - keys[None, :]) <= window, p, 0.0)
            acc += product(p.to(v.dtype), v, v.dtype == tl.float32)
    return acc


@triton.jit
def attend_backward(
    q, dout, rows, k_base, v_base, n_kv, head, scale_in, window,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, CODES: tl.constexpr, PER_HEAD: tl.constexpr, WINDOWED: tl.constexpr,
    ONE_TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """dQ of one Q tile → f32 [BLOCK_M, BLOCK_D], without the factor s_in · s_out. S is recomputed."""
    n = tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    low = n_kv * 0
    high = n_kv
    if WINDOWED:
        low = tl.maximum(tl.min(rows) - window, 0) // BLOCK_N * BLOCK_N
        high = tl.minimum(tl.max(rows) + window + 1, n_kv)
    if ONE_TILE:
        k = load_rows(k_base, n, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
        v = load_rows(v_base, n, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
        dp = product(dout, tl.trans(v), v.dtype == tl.float32)
        ds = activate_derivative(scores_tile(q, k, scale_in), head, CODES, PER_HEAD, HEADS, HARDWARE) * dp
        acc = product(ds.to(k.dtype), k, k.dtype == tl.float32)
    else:
        for first in range(low, high, BLOCK_N):
            keys = first + n
            k = load_rows(k_base, keys, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
            v = load_rows(v_base, keys, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
            dp = product(dout, tl.trans(v), v.dtype == tl.float32)
            ds = activate_derivative(scores_tile(q, k, scale_in), head, CODES, PER_HEAD, HEADS, HARDWARE) * dp
            if WINDOWED:
                ds = tl.where(tl.abs(rows[:, None] - keys[None, :]) <= window, ds, 0.0)
            acc += product(ds.to(k.dtype), k, k.dtype == tl.float32)
    return acc
