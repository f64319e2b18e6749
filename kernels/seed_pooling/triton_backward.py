"""Seed pooling over jagged rows as Triton kernels: backward.

One kernel holds a tile of a sample's rows and walks the seeds (dK, dV); the other holds a tile of seeds, walks the
rows of every `SPLITS`-th sample and writes one partial sum per split, which are then added in order (the seeds are
shared, so their gradient is a sum over the batch). Nothing is added atomically: the same inputs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.online_softmax import LOG2_E, launch_constants, load_rows, product
from kernels.tiles import longest_first, tile_list
from kernels.tiling import Tiling

FEW = Tiling(queries=32, keys=64, warps=4, stages=2)
MANY = Tiling(queries=64, keys=64, warps=4, stages=2)
"""Best of a sweep on an H100 at d_h = 128."""
SPLITS = 64


@triton.jit
def seed_pooling_backward_keys(
    seeds, k, v, d_out, lse, delta, dk, dv, offsets, tiles, n_seeds, scale, log2_scale,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SEEDS: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of KEYS rows; rows are [sum_T, H, D], d_out [B, n_seeds, H, D], contiguous."""
    tile, head = tl.program_id(0), tl.program_id(1)
    sample = tl.load(tiles + 2 * tile)
    if sample < 0:
        return
    begin = tl.load(offsets + sample).to(tl.int64)
    length = (tl.load(offsets + sample + 1).to(tl.int64) - begin).to(tl.int32)
    columns = tl.arange(0, WIDTH)
    base = (begin * H + head) * D
    keys = tl.load(tiles + 2 * tile + 1) + tl.arange(0, KEYS)
    real = keys < length
    k_tile = load_rows(k + base, keys, columns, H * D, real, D, UPCAST)
    v_tile = load_rows(v + base, keys, columns, H * D, real, D, UPCAST)
    k_acc = tl.zeros([KEYS, WIDTH], dtype=tl.float32)
    v_acc = tl.zeros([KEYS, WIDTH], dtype=tl.float32)
    pooled = sample.to(tl.int64) * n_seeds * H + head
    for start in range(0, n_seeds, SEEDS):
        queries = start + tl.arange(0, SEEDS)
        here = queries < n_seeds
        q_tile = load_rows(seeds + head * D, queries, columns, H * D, here, D, UPCAST)
        d_tile = load_rows(d_out + pooled * D, queries, columns, H * D, here, D, UPCAST)
        sums = tl.load(lse + pooled + queries * H, mask=here, other=0.0) * 1.4426950408889634
        dots = tl.load(delta + pooled + queries * H, mask=here, other=0.0)
        seen = real[:, None] & here[None, :]
        weights = tl.where(seen, tl.exp2(product(k_tile, tl.trans(q_tile)) * log2_scale - sums[None, :]), 0.0)
        v_acc += product(weights.to(d_tile.dtype), d_tile)
        d_scores = weights * (product(v_tile, tl.trans(d_tile)) - dots[None, :])
        k_acc += product(d_scores.to(q_tile.dtype), q_tile)
    at = base + keys[:, None] * (H * D) + columns[None, :]
    kept = real[:, None] & (columns < D)[None, :]
    tl.store(dk + at, k_acc * scale, mask=kept)
    tl.store(dv + at, v_acc, mask=kept)


@triton.jit
def seed_pooling_backward_seeds(
    seeds, k, v, d_out, lse, delta, partial, offsets, order, samples, n_seeds, scale, log2_scale,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SEEDS: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One split's share of the seeds' gradient: partial [splits, n_seeds, H, D] float32."""
    head = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    queries = tl.program_id(0) * SEEDS + tl.arange(0, SEEDS)
    here = queries < n_seeds
    q_tile = load_rows(seeds + head * D, queries, columns, H * D, here, D, UPCAST)
    acc = tl.zeros([SEEDS, WIDTH], dtype=tl.float32)
    for place in range(tl.program_id(2), samples, tl.num_programs(2)):
        sample = tl.load(order + place).to(tl.int64)
        begin = tl.load(offsets + sample).to(tl.int64)
        length = (tl.load(offsets + sample + 1).to(tl.int64) - begin).to(tl.int32)
        base, pooled = (begin * H + head) * D, sample * n_seeds * H + head
        d_tile = load_rows(d_out + pooled * D, queries, columns, H * D, here, D, UPCAST)
        sums = tl.load(lse + pooled + queries * H, mask=here, other=0.0) * 1.4426950408889634
        dots = tl.load(delta + pooled + queries * H, mask=here, other=0.0)
        for start in range(0, length, KEYS):
            keys = start + tl.arange(0, KEYS)
            k_tile = load_rows(k + base, keys, columns, H * D, keys < length, D, UPCAST)
            v_tile = load_rows(v + base, keys, columns, H * D, keys < length, D, UPCAST)
            seen = here[:, None] & (keys < length)[None, :]
            weights = tl.where(seen, tl.exp2(product(q_tile, tl.trans(k_tile)) * log2_scale - sums[:, None]), 0.0)
            d_scores = weights * (product(d_tile, tl.trans(v_tile)) - dots[:, None])
            acc += product(d_scores.to(k_tile.dtype), k_tile)
    at = ((tl.program_id(2) * n_seeds + queries) * H + head)[:, None] * D + columns[None, :]
    tl.store(partial + at, acc * scale, mask=here[:, None] & (columns < D)[None, :])


def backward(
    d_out: Tensor, seeds: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of seeds, k and v for d_out [B, n_seeds, H, d_h], given what the forward returned."""
    tiling = tiling or (FEW if len(seeds) <= 32 else MANY).for_dtype(k.dtype)
    samples, rows, (n_seeds, heads, width) = len(offsets) - 1, k.shape[0], seeds.shape
    d_out, seeds, k, v = (x.contiguous() for x in (d_out, seeds, k, v))
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    if not rows:
        return torch.zeros_like(seeds), dk, dv
    delta = (d_out.float() * out.float()).sum(-1)  # [B, n_seeds, H]
    scales = n_seeds, width**-0.5, width**-0.5 * LOG2_E
    constants = launch_constants(k, tiling) | {"SEEDS": tiling.queries, "KEYS": tiling.keys}
    tiles = tile_list(offsets, rows, tiling.keys)
    seed_pooling_backward_keys[(len(tiles), heads)](
        seeds, k, v, d_out, lse, delta, dk, dv, offsets, tiles, *scales, **constants
    )
    splits = min(SPLITS, samples)
    partial = torch.empty((splits, n_seeds, heads, width), dtype=torch.float32, device=k.device)
    grid = (triton.cdiv(n_seeds, tiling.queries), heads, splits)
    order = longest_first(offsets)
    seed_pooling_backward_seeds[grid](seeds, k, v, d_out, lse, delta, partial, offsets, order, samples, *scales, **constants)
    return partial.sum(0).to(seeds.dtype), dk, dv
