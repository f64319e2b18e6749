"""GDPA backward on CUDA, from q, k, v and dout alone (model specification §2.6): S is recomputed, nothing was stored.

`gdpa_backward_kv`: one program per (K/V tile, head) that walks over all Q rows which read the tile, also those
of several samples (candidates of one user), so dK and dV are sums in a fixed order without atomics; where a
block's keys fit one tile it writes dQ on the way.
`gdpa_backward_q`: dQ otherwise, one program per (Q tile, head).
`shared_q_backward`: dQ of a query set that every sample shares, as f32 partial sums over groups of samples.
The block's backward reuses `gdpa_backward_kv` with NORMS: q is normalised and dout taken through RMSNorm on load.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gdpa.triton_parts import LAYOUT, SCALARS, attend_backward, block_range, load_rows, row_range, store_rows, work_unit
from kernels.triton_activations import INTERPRETED, activate, activate_derivative, product


@triton.jit(do_not_specialize=SCALARS, do_not_specialize_on_alignment=LAYOUT)
def gdpa_backward_q(
    q, k, v, dout, dq, tiles, q_offsets, q_lengths, k_offsets, kv_index, scale_in, scale_out, units_per_sample, window,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, N_KV: tl.constexpr, WINDOWED: tl.constexpr,
    CODES: tl.constexpr, PER_HEAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq [rows, HEADS, HEAD_WIDTH] of unshared queries; grid (units, HEADS)."""
    HARDWARE: tl.constexpr = (k.dtype.element_ty != tl.float32) and not INTERPRETED
    ONE_TILE: tl.constexpr = (N_KV > 0) and (N_KV <= BLOCK_N) and not WINDOWED
    sample, first = work_unit(tiles, tl.program_id(0), units_per_sample, BLOCK_M)
    if sample >= 0:
        head = tl.program_id(1)
        start, length = row_range(q_offsets, q_lengths, sample)
        k_start, n_kv = block_range(k_offsets, kv_index, sample, N_KV)
        rows = first + tl.arange(0, BLOCK_M)
        base = start * (HEADS * HEAD_WIDTH)
        k_base = k + k_start * (HEADS * HEAD_WIDTH)
        v_base = v + k_start * (HEADS * HEAD_WIDTH)
        q_tile = load_rows(q + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(k.dtype.element_ty)
        dout_tile = load_rows(dout + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(k.dtype.element_ty)
        acc = attend_backward(
            q_tile, dout_tile, rows, k_base, v_base, n_kv, head, scale_in, window,
            HEADS, HEAD_WIDTH, CODES, PER_HEAD, WINDOWED, ONE_TILE, BLOCK_M, BLOCK_N, BLOCK_D, HARDWARE,
        )  # fmt: skip
        store_rows(dq + base, rows, length, head, acc * (scale_in * scale_out), HEADS, HEAD_WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=SCALARS, do_not_specialize_on_alignment=LAYOUT)
def shared_q_backward(
    q, k, v, dout, partial, k_offsets, kv_index, scale_in, scale_out, window, queries, samples, groups,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, N_KV: tl.constexpr, WINDOWED: tl.constexpr,
    CODES: tl.constexpr, PER_HEAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partial f32 [groups, queries, HEADS, HEAD_WIDTH]: group g sums dQ over samples g, g + groups, …

    Grid (Q tiles, HEADS, groups).
    """
    HARDWARE: tl.constexpr = (k.dtype.element_ty != tl.float32) and not INTERPRETED
    ONE_TILE: tl.constexpr = (N_KV > 0) and (N_KV <= BLOCK_N) and not WINDOWED
    head = tl.program_id(1)
    group = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q_tile = load_rows(q, rows, queries, head, HEADS, HEAD_WIDTH, BLOCK_D).to(k.dtype.element_ty)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i in range((samples - group + groups - 1) // groups):
        sample = group + i * groups
        k_start, n_kv = block_range(k_offsets, kv_index, sample, N_KV)
        base = sample.to(tl.int64) * queries * (HEADS * HEAD_WIDTH)
        dout_tile = load_rows(dout + base, rows, queries, head, HEADS, HEAD_WIDTH, BLOCK_D).to(k.dtype.element_ty)
        k_base = k + k_start * (HEADS * HEAD_WIDTH)
        v_base = v + k_start * (HEADS * HEAD_WIDTH)
        acc += attend_backward(
            q_tile, dout_tile, rows, k_base, v_base, n_kv, head, scale_in, window,
            HEADS, HEAD_WIDTH, CODES, PER_HEAD, WINDOWED, ONE_TILE, BLOCK_M, BLOCK_N, BLOCK_D, HARDWARE,
        )  # fmt: skip
    out = partial + group.to(tl.int64) * queries * (HEADS * HEAD_WIDTH)
    store_rows(out, rows, queries, head, acc * (scale_in * scale_out), HEADS, HEAD_WIDTH, BLOCK_D)


@triton.jit
def normed_query(raw, mean, rstd, HEAD_WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(q − μ) · rstd in f32; zero beyond the head width."""
    normed = (raw.to(tl.float32) - mean[:, None]) * rstd[:, None]
    if BLOCK_D != HEAD_WIDTH:
        normed = tl.where(tl.arange(0, BLOCK_D)[None, :] < HEAD_WIDTH, normed, 0.0)
    return normed


@triton.jit
def through_rms_norm(dout, out, raw, rrms, coupling):
    """Gradient before RMSNorm, in f32: rrms · (dout − r · mean(dout · r)), with r = out − q recovered and the mean given."""
    r = out.to(tl.float32) - raw.to(tl.float32)
    return rrms[:, None] * (dout.to(tl.float32) - r * coupling[:, None])


@triton.jit(do_not_specialize=SCALARS, do_not_specialize_on_alignment=LAYOUT)
def gdpa_backward_kv(
    q, k, v, dout, dq, dk, dv, out, mean, rstd, rrms, coupling, tiles, q_offsets, q_lengths, k_offsets, reader_offsets, readers,
    scale_in, scale_out, units_per_block, window, queries,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, N_KV: tl.constexpr, SHARED_Q: tl.constexpr, WINDOWED: tl.constexpr,
    NORMS: tl.constexpr, CODES: tl.constexpr, PER_HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk, dv [K/V rows, HEADS, HEAD_WIDTH]; grid (units of BLOCK_N K/V rows, HEADS).

    `dq` unless None: where a block's keys are one tile, the program also has all that dQ of its Q rows needs (with NORMS:
    dq̂, the inner residual included).
    `reader_offsets`, `readers`: which samples read each block (`kernels.tiles.readers`), None: sample i reads block i.
    `out`, `mean`, `rstd`, `rrms`, `coupling` (row statistics f32) are read only with NORMS.
    """
    HARDWARE: tl.constexpr = (k.dtype.element_ty != tl.float32) and not INTERPRETED
    INPUT_F32: tl.constexpr = k.dtype.element_ty == tl.float32
    block, first_key = work_unit(tiles, tl.program_id(0), units_per_block, BLOCK_N)
    if block >= 0:
        head = tl.program_id(1)
        k_start, n_kv = block_range(k_offsets, None, block, N_KV)
        keys = first_key + tl.arange(0, BLOCK_N)
        k_base = k_start * (HEADS * HEAD_WIDTH)
        k_tile = load_rows(k + k_base, keys, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
        v_tile = load_rows(v + k_base, keys, n_kv, head, HEADS, HEAD_WIDTH, BLOCK_D)
        dk_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dv_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        reader = block if readers is None else tl.load(reader_offsets + block)
        stop = block + 1 if readers is None else tl.load(reader_offsets + block + 1)
        for i in range(stop - reader):
            sample = reader + i if readers is None else tl.load(readers + reader + i)
            if SHARED_Q:
                start = tl.zeros([], tl.int64)
                length = queries
                out_start = sample.to(tl.int64) * queries
            else:
                start, length = row_range(q_offsets, q_lengths, sample)
                out_start = start
            low = length * 0
            high = length
            if WINDOWED:
                low = tl.maximum(first_key - window, 0) // BLOCK_M * BLOCK_M
                high = tl.minimum(first_key + BLOCK_N + window, length)
            for m in range(low, high, BLOCK_M):
                rows = m + tl.arange(0, BLOCK_M)
                q_tile = load_rows(q + start * (HEADS * HEAD_WIDTH), rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D)
                dout_tile = load_rows(dout + out_start * (HEADS * HEAD_WIDTH), rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D)
                if not NORMS:
                    q_tile = q_tile.to(k_tile.dtype)
                    dout_tile = dout_tile.to(k_tile.dtype)
                if NORMS:
                    inside = rows < length
                    out_tile = load_rows(out + start * (HEADS * HEAD_WIDTH), rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D)
                    mu = tl.load(mean + start + rows, mask=inside, other=0.0)
                    inverse_std = tl.load(rstd + start + rows, mask=inside, other=0.0)
                    inverse_rms = tl.load(rrms + start + rows, mask=inside, other=0.0)
                    couple = tl.load(coupling + start + rows, mask=inside, other=0.0)
                    dx = through_rms_norm(dout_tile, out_tile, q_tile, inverse_rms, couple)
                    dout_tile = dx.to(k_tile.dtype)
                    q_tile = normed_query(q_tile, mu, inverse_std, HEAD_WIDTH, BLOCK_D).to(k_tile.dtype)
                scores = product(k_tile, tl.trans(q_tile), INPUT_F32) * scale_in  # Sᵀ [BLOCK_N, BLOCK_M]
                p = activate(scores, head, CODES, PER_HEAD, HEADS, HARDWARE)
                ds = activate_derivative(scores, head, CODES, PER_HEAD, HEADS, HARDWARE)
                ds = ds * product(v_tile, tl.trans(dout_tile), INPUT_F32)
                if WINDOWED:
                    near = tl.abs(keys[:, None] - rows[None, :]) <= window
                    p = tl.where(near, p, 0.0)
                    ds = tl.where(near, ds, 0.0)
                dv_tile += product(p.to(v_tile.dtype), dout_tile, INPUT_F32)
                dk_tile += product(ds.to(k_tile.dtype), q_tile, INPUT_F32)
                if dq is not None:
                    dq_tile = product(tl.trans(ds.to(k_tile.dtype)), k_tile, INPUT_F32) * (scale_in * scale_out)
                    if NORMS:
                        dq_tile += dx
                    store_rows(dq + start * (HEADS * HEAD_WIDTH), rows, length, head, dq_tile, HEADS, HEAD_WIDTH, BLOCK_D)
        store_rows(dk + k_base, keys, n_kv, head, dk_tile * (scale_in * scale_out), HEADS, HEAD_WIDTH, BLOCK_D)
        store_rows(dv + k_base, keys, n_kv, head, dv_tile * scale_out, HEADS, HEAD_WIDTH, BLOCK_D)
