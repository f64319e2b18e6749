"""`kernels.tiles.work_list` in one kernel after a sort: a few launches instead of a dozen for a few thousand samples."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["samples", "slots", "tile"], do_not_specialize_on_alignment=["offsets", "lengths", "order"])
def list_tiles(offsets, lengths, order, entries, samples, slots, tile, BLOCK: tl.constexpr):
    """entries int32 [slots, 2]: (sample, first row) per tile, (−1, 0) behind the last; one program.

    Samples as `order` int64 [samples] has them, None: one after the other.
    """
    sample = tl.arange(0, BLOCK)
    inside = sample < samples
    if order is not None:
        sample = tl.load(order + sample, mask=inside, other=0).to(tl.int32)
    if lengths is None:
        length = tl.load(offsets + sample + 1, mask=inside, other=0) - tl.load(offsets + sample, mask=inside, other=0)
    else:
        length = tl.load(lengths + sample, mask=inside, other=0)
    tiles = (length + (tile - 1)) // tile
    ends = tl.cumsum(tiles, 0)
    place = ends - tiles
    for t in range(tl.max(tiles)):
        target = entries + 2 * (place + t)
        tl.store(target, sample, mask=t < tiles)
        tl.store(target + 1, tl.zeros_like(tiles) + t * tile, mask=t < tiles)
    for spare in range(tl.max(ends), slots, BLOCK):
        slot = spare + tl.arange(0, BLOCK)
        tl.store(entries + 2 * slot, tl.zeros_like(slot) - 1, mask=slot < slots)
        tl.store(entries + 2 * slot + 1, tl.zeros_like(slot), mask=slot < slots)


def work_list(offsets: Tensor, lengths: Tensor | None, rows: int, tile: int, longest_first: bool) -> Tensor:
    """See `kernels.tiles.work_list`."""
    samples = len(offsets) - 1
    entries = torch.empty((rows // tile + samples, 2), dtype=torch.int32, device=offsets.device)
    block = max(16, triton.next_power_of_2(samples))
    if samples:
        order = None
        if longest_first:
            order = torch.argsort(offsets.diff() if lengths is None else lengths, descending=True, stable=True)
        list_tiles[(1,)](offsets, lengths, order, entries, samples, len(entries), tile, block, num_warps=8)
    return entries
