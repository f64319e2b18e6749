"""Seed pooling over jagged rows as a Triton kernel: forward.

One program per (sample, head, tile of seeds), longest samples first; it walks the sample's rows with an online
softmax. The seeds are shared by all samples and stay in the L2 cache; K and V are read once per tile of seeds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.online_softmax import LOG2_E, check_device, launch_constants, load_rows, online_end, online_step, product
from kernels.seed_pooling.reference import check
from kernels.tiles import longest_first
from kernels.tiling import Tiling
from kernels.triton_index import load_index, store_optional

FEW = Tiling(queries=32, keys=64, warps=4, stages=3)
MANY = Tiling(queries=128, keys=64, warps=8, stages=2)
"""Best of a sweep on an H100 at d_h = 128: a tile should hold all of a few seeds, and read K and V seldom for many."""


@triton.jit
def seed_pooling_forward(
    seeds, k, v, out, lse, offsets, order, n_seeds, log2_scale, k_row, k_head, v_row, v_head,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SEEDS: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One (sample of `order`, head, tile of seeds); `order` and `lse` may be NULL ahead of time."""
    sample, head = load_index(order, tl.program_id(0), tl.program_id(0)).to(tl.int64), tl.program_id(1)
    begin = tl.load(offsets + sample).to(tl.int64)
    length = (tl.load(offsets + sample + 1).to(tl.int64) - begin).to(tl.int32)
    columns = tl.arange(0, WIDTH)
    queries = tl.program_id(2) * SEEDS + tl.arange(0, SEEDS)
    real = queries < n_seeds
    q_tile = load_rows(seeds + head * D, queries, columns, H * D, real, D, UPCAST)
    acc = tl.zeros([SEEDS, WIDTH], dtype=tl.float32)
    top = tl.full([SEEDS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([SEEDS], dtype=tl.float32)
    for start in range(0, length, KEYS):
        keys = start + tl.arange(0, KEYS)
        k_tile = load_rows(k + begin * k_row + head * k_head, keys, columns, k_row, keys < length, D, UPCAST)
        v_tile = load_rows(v + begin * v_row + head * v_head, keys, columns, v_row, keys < length, D, UPCAST)
        scores = tl.where((keys < length)[None, :], product(q_tile, tl.trans(k_tile)) * log2_scale, float("-inf"))
        acc, top, total = online_step(scores, v_tile, acc, top, total)
    result, sums = online_end(acc, top, total)
    rows = (sample * n_seeds + queries) * H + head
    tl.store(out + rows[:, None] * D + columns[None, :], result, mask=real[:, None] & (columns < D)[None, :])
    store_optional(lse, rows, sums * 0.6931471805599453, real)


def forward(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, tiling: Tiling | None = None) -> tuple[Tensor, Tensor]:
    """As `kernels.seed_pooling.reference.seed_pooling_jagged`; rows of k and v may be strided, columns not.

    float32, float16 or bfloat16 on a CUDA device, or on the CPU under Triton's interpreter.
    """
    check(seeds, k, v, offsets)
    check_device("seed_pooling", k)
    tiling = tiling or (FEW if len(seeds) <= 32 else MANY).for_dtype(k.dtype)
    samples, (n_seeds, heads, width) = len(offsets) - 1, seeds.shape
    seeds = seeds.contiguous()
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    out = torch.empty((samples, n_seeds, heads, width), dtype=k.dtype, device=k.device)
    lse = torch.empty((samples, n_seeds, heads), dtype=torch.float32, device=k.device)
    if samples:
        seed_pooling_forward[(samples, heads, triton.cdiv(n_seeds, tiling.queries))](
            seeds, k, v, out, lse, offsets, longest_first(offsets), n_seeds, width**-0.5 * LOG2_E,
            k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            SEEDS=tiling.queries, KEYS=tiling.keys, **launch_constants(k, tiling),
        )  # fmt: skip
    return out, lse
