"""Sliding-window attention on jagged rows as a Triton kernel: forward.

One program per (tile of queries, head) of the work list; it walks the keys of its band alone, [first − w, last + w]
cut to the sample, so work is O(T · (w + tile)) and no mask is ever loaded. Sums of a row depend on the row's own
sample and the tile sizes, never on its neighbours in the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.online_softmax import LOG2_E, check_device, launch_constants, load_rows, online_end, online_step, product
from kernels.tiles import tile_list
from kernels.tiling import Tiling
from kernels.triton_index import load_index, store_optional
from kernels.window.reference import check

NARROW = Tiling(queries=64, keys=32, warps=4, stages=3)
WIDE = Tiling(queries=64, keys=64, warps=4, stages=3)
"""Best of a sweep on an H100 at d_h = 128; small key tiles waste less of a narrow band."""


@triton.jit
def window_forward(
    q, k, v, out, lse, offsets, tiles, units_per_sample, window, log2_scale,
    q_row, q_head, k_row, k_head, v_row, v_head,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One (tile, head); `tiles`, `lse` may be NULL ahead of time, tiles are then counted, `units_per_sample` of each sample."""
    tile, head = tl.program_id(0), tl.program_id(1)
    sample = load_index(tiles, 2 * tile, tile // units_per_sample)
    if sample < 0:
        return
    first = load_index(tiles, 2 * tile + 1, (tile % units_per_sample) * QUERIES)
    begin = tl.load(offsets + sample).to(tl.int64)
    length = (tl.load(offsets + sample + 1).to(tl.int64) - begin).to(tl.int32)
    if first >= length:
        return
    columns = tl.arange(0, WIDTH)
    queries = first + tl.arange(0, QUERIES)
    q_tile = load_rows(q + begin * q_row + head * q_head, queries, columns, q_row, queries < length, D, UPCAST)
    acc = tl.zeros([QUERIES, WIDTH], dtype=tl.float32)
    top = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
    total = tl.zeros([QUERIES], dtype=tl.float32)
    low = tl.maximum(first - window, 0)
    high = tl.minimum(first + QUERIES + window, length)
    for start in range(low, high, KEYS):
        keys = start + tl.arange(0, KEYS)
        k_tile = load_rows(k + begin * k_row + head * k_head, keys, columns, k_row, keys < length, D, UPCAST)
        v_tile = load_rows(v + begin * v_row + head * v_head, keys, columns, v_row, keys < length, D, UPCAST)
        distance = queries[:, None] - keys[None, :]
        seen = (distance <= window) & (distance >= -window) & (keys < length)[None, :]
        scores = tl.where(seen, product(q_tile, tl.trans(k_tile)) * log2_scale, float("-inf"))
        acc, top, total = online_step(scores, v_tile, acc, top, total)
    result, sums = online_end(acc, top, total)
    rows = (begin + queries) * H + head
    real = queries < length
    tl.store(out + rows[:, None] * D + columns[None, :], result, mask=real[:, None] & (columns < D)[None, :])
    store_optional(lse, rows, sums * 0.6931471805599453, real)


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor]:
    """As `kernels.window.reference.window_attention_jagged`; rows may be strided (a slice of fused QKV), columns not.

    float32, float16 or bfloat16 on a CUDA device, or on the CPU under Triton's interpreter.
    """
    check(q, k, v, offsets, window)
    check_device("window_attention", q)
    tiling = tiling or (NARROW if window < 256 else WIDE).for_dtype(q.dtype)
    rows, heads, width = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty((rows, heads, width), dtype=q.dtype, device=q.device)
    lse = torch.empty((rows, heads), dtype=torch.float32, device=q.device)
    tiles = tile_list(offsets, rows, tiling.queries)
    if not len(tiles) or not rows:
        return out, lse
    window_forward[(len(tiles), heads)](
        q, k, v, out, lse, offsets, tiles, 1, min(window, rows), width**-0.5 * LOG2_E,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        QUERIES=tiling.queries, KEYS=tiling.keys, **launch_constants(q, tiling),
    )  # fmt: skip
    return out, lse
