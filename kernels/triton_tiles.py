"""`kernels.tiles.work_list` as one kernel: a list of a few thousand samples costs one launch instead of a dozen."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 8192  # samples that one program sorts or counts; beyond, the tensor operations do it


@triton.jit(do_not_specialize=["samples", "slots", "tile"], do_not_specialize_on_alignment=["offsets", "lengths"])
def list_tiles(offsets, lengths, entries, samples, slots, tile, SORTED: tl.constexpr, BLOCK: tl.constexpr):
    """entries int32 [slots, 2]: (sample, first row) per tile, (−1, 0) behind the last; one program."""
    sample = tl.arange(0, BLOCK)
    inside = sample < samples
    if lengths is None:
        length = tl.load(offsets + sample + 1, mask=inside, other=0) - tl.load(offsets + sample, mask=inside, other=0)
    else:
        length = tl.load(lengths + sample, mask=inside, other=0)
    if SORTED:
        key = tl.sort(length.to(tl.int64) * BLOCK + (BLOCK - 1 - sample), descending=True)  # equal lengths keep their order
        length = (key // BLOCK).to(tl.int32)
        sample = (BLOCK - 1 - key % BLOCK).to(tl.int32)
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
    """See `kernels.tiles.work_list`; at most `LARGEST` samples."""
    samples = len(offsets) - 1
    entries = torch.empty((rows // tile + samples, 2), dtype=torch.int32, device=offsets.device)
    block = max(16, triton.next_power_of_2(samples))
    if samples:
        list_tiles[(1,)](offsets, lengths, entries, samples, len(entries), tile, longest_first, block, num_warps=8)
    return entries
