"""Sliding-window attention on jagged rows as Triton kernels: backward.

The band is symmetric, so both kernels walk it as the forward does: one holds a tile of queries and gathers dQ, the
other a tile of keys and gathers dK and dV. Nothing is added atomically: the same inputs give the same bits.

    P = exp(S − lse)   dV = Pᵀ dO   dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ O))   dQ = dS K / √d_h   dK = dSᵀ Q / √d_h
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.online_softmax import LOG2_E, launch_constants, load_rows, product
from kernels.tiles import tile_list
from kernels.tiling import Tiling

TILING = Tiling(queries=64, keys=64, warps=4, stages=2)
"""Best of a sweep on an H100 at d_h = 128: eight warps spill less and are a third slower."""


@triton.jit
def window_backward_queries(
    q, k, v, d_out, lse, delta, dq, offsets, tiles, window, scale, log2_scale,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, WALKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of HELD queries; all rows are [sum_T, H, D], contiguous."""
    tile, head = tl.program_id(0), tl.program_id(1)
    sample = tl.load(tiles + 2 * tile)
    if sample < 0:
        return
    first = tl.load(tiles + 2 * tile + 1)
    begin = tl.load(offsets + sample).to(tl.int64)
    length = (tl.load(offsets + sample + 1).to(tl.int64) - begin).to(tl.int32)
    columns = tl.arange(0, WIDTH)
    base = (begin * H + head) * D
    queries = first + tl.arange(0, HELD)
    real = queries < length
    q_tile = load_rows(q + base, queries, columns, H * D, real, D, UPCAST)
    d_tile = load_rows(d_out + base, queries, columns, H * D, real, D, UPCAST)
    sums = tl.load(lse + (begin + queries) * H + head, mask=real, other=0.0) * 1.4426950408889634
    dots = tl.load(delta + (begin + queries) * H + head, mask=real, other=0.0)
    acc = tl.zeros([HELD, WIDTH], dtype=tl.float32)
    for start in range(tl.maximum(first - window, 0), tl.minimum(first + HELD + window, length), WALKED):
        keys = start + tl.arange(0, WALKED)
        k_tile = load_rows(k + base, keys, columns, H * D, keys < length, D, UPCAST)
        v_tile = load_rows(v + base, keys, columns, H * D, keys < length, D, UPCAST)
        distance = queries[:, None] - keys[None, :]
        seen = (distance <= window) & (distance >= -window) & (keys < length)[None, :] & real[:, None]
        weights = tl.where(seen, tl.exp2(product(q_tile, tl.trans(k_tile)) * log2_scale - sums[:, None]), 0.0)
        d_scores = weights * (product(d_tile, tl.trans(v_tile)) - dots[:, None])
        acc += product(d_scores.to(k_tile.dtype), k_tile)
    at = base + queries[:, None] * (H * D) + columns[None, :]
    tl.store(dq + at, acc * scale, mask=real[:, None] & (columns < D)[None, :])


@triton.jit
def window_backward_keys(
    q, k, v, d_out, lse, delta, dk, dv, offsets, tiles, window, scale, log2_scale,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, WALKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of HELD keys; all rows are [sum_T, H, D], contiguous."""
    tile, head = tl.program_id(0), tl.program_id(1)
    sample = tl.load(tiles + 2 * tile)
    if sample < 0:
        return
    first = tl.load(tiles + 2 * tile + 1)
    begin = tl.load(offsets + sample).to(tl.int64)
    length = (tl.load(offsets + sample + 1).to(tl.int64) - begin).to(tl.int32)
    columns = tl.arange(0, WIDTH)
    base = (begin * H + head) * D
    keys = first + tl.arange(0, HELD)
    real = keys < length
    k_tile = load_rows(k + base, keys, columns, H * D, real, D, UPCAST)
    v_tile = load_rows(v + base, keys, columns, H * D, real, D, UPCAST)
    k_acc = tl.zeros([HELD, WIDTH], dtype=tl.float32)
    v_acc = tl.zeros([HELD, WIDTH], dtype=tl.float32)
    for start in range(tl.maximum(first - window, 0), tl.minimum(first + HELD + window, length), WALKED):
        queries = start + tl.arange(0, WALKED)
        here = queries < length
        q_tile = load_rows(q + base, queries, columns, H * D, here, D, UPCAST)
        d_tile = load_rows(d_out + base, queries, columns, H * D, here, D, UPCAST)
        sums = tl.load(lse + (begin + queries) * H + head, mask=here, other=0.0) * 1.4426950408889634
        dots = tl.load(delta + (begin + queries) * H + head, mask=here, other=0.0)
        distance = keys[:, None] - queries[None, :]
        seen = (distance <= window) & (distance >= -window) & here[None, :] & real[:, None]
        weights = tl.where(seen, tl.exp2(product(k_tile, tl.trans(q_tile)) * log2_scale - sums[None, :]), 0.0)
        v_acc += product(weights.to(d_tile.dtype), d_tile)
        d_scores = weights * (product(v_tile, tl.trans(d_tile)) - dots[None, :])
        k_acc += product(d_scores.to(q_tile.dtype), q_tile)
    at = base + keys[:, None] * (H * D) + columns[None, :]
    kept = real[:, None] & (columns < D)[None, :]
    tl.store(dk + at, k_acc * scale, mask=kept)
    tl.store(dv + at, v_acc, mask=kept)


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, window: int,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v for d_out [sum_T, H, d_h], given what the forward returned."""
    tiling = tiling or TILING.for_dtype(q.dtype)
    rows, heads, width = q.shape
    d_out, q, k, v = (x.contiguous() for x in (d_out, q, k, v))
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    tiles = tile_list(offsets, rows, tiling.queries)
    if not len(tiles) or not rows:
        return dq, dk, dv
    delta = (d_out.float() * out.float()).sum(-1)  # [sum_T, H]
    scales = min(window, rows), width**-0.5, width**-0.5 * LOG2_E
    constants = launch_constants(q, tiling) | {"HELD": tiling.queries, "WALKED": tiling.keys}
    grid = (len(tiles), heads)
    window_backward_queries[grid](q, k, v, d_out, lse, delta, dq, offsets, tiles, *scales, **constants)
    window_backward_keys[grid](q, k, v, d_out, lse, delta, dk, dv, offsets, tiles, *scales, **constants)
    return dq, dk, dv
