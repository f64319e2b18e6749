"""Work lists of jagged kernels, made on the device: no length is read by the host, so nothing waits for the GPU.

One entry per tile of rows; samples in order of length, longest first, so that the last programs of a grid are short
ones (Meta's zig-zag schedule serves the same end on the host). The grid is as large as the lengths could need,
rows / tile + B; spare entries hold sample −1 and their programs return at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tile_list(offsets: Tensor, rows: int, tile: int) -> Tensor:
    """Tiles of `tile` rows over samples of `offsets` [B+1] with `rows` rows in all.

    Returns int32 [rows // tile + B, 2]: the sample and its first row in the tile; (−1, 0) for spare entries. The order of
    samples of equal length is theirs.
    """
    return work_list(offsets, None, rows, tile)


def work_list(offsets: Tensor, lengths: Tensor | None, rows: int, tile: int, *, longest_first: bool = True) -> Tensor:
    """The same, for rows that are padded behind where `lengths` [B] is given; `longest_first` off: samples in their order.

    One kernel on a GPU (after a sort), for up to a few thousand samples; a dozen tensor operations elsewhere.
    """
    if offsets.is_cuda and len(offsets) <= 8192:
        from kernels import triton_tiles

        return triton_tiles.work_list(offsets, lengths, rows, tile, longest_first)
    return _work_list(offsets.diff() if lengths is None else lengths, rows, tile, longest_first)


def _work_list(lengths: Tensor, rows: int, tile: int, longest_first: bool) -> Tensor:
    samples = len(lengths)
    entries = torch.arange(rows // tile + samples, device=lengths.device)
    if samples == 0:
        return torch.empty((0, 2), dtype=torch.int32, device=lengths.device)
    order = torch.arange(samples, device=lengths.device)
    if longest_first:
        lengths, order = torch.sort(lengths, descending=True, stable=True)
    ends = torch.div(lengths + (tile - 1), tile, rounding_mode="floor").cumsum(0)  # tiles up to and with each sample
    place = torch.searchsorted(ends, entries, right=True)
    spare = place == samples
    place = place.clamp_max(samples - 1)
    first = (entries - (ends[place] - torch.div(lengths[place] + (tile - 1), tile, rounding_mode="floor"))) * tile
    sample = order[place].masked_fill(spare, -1)
    return torch.stack([sample, first.masked_fill(spare, 0)], dim=1).to(torch.int32)


def longest_first(offsets: Tensor) -> Tensor:
    """Samples of `offsets` [B+1] by length, longest first: int32 [B]."""
    return torch.argsort(offsets.diff(), descending=True, stable=True).to(torch.int32)


def readers(index: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Who reads each block, the inverse of `index` int [B]: (offsets int32 [blocks + 1], samples int32 [B] by block)."""
    ordered, samples = index.sort(stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(blocks + 1, device=index.device, dtype=ordered.dtype))
    return offsets.int(), samples.int()
