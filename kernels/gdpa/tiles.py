"""Work lists for the Triton kernels: which rows each program handles, longest samples first.

Built with a few tensor operations on the device, without a synchronisation: the list has room for
the most tiles that `rows` can need, Σ ceil(length / tile) ≤ rows / tile + B, and unused entries say −1.
Longest first, so that the last programs to start are the short ones (jagged K/V: work grows with length).
"""

from __future__ import annotations

import torch
from torch import Tensor


def tile_list(lengths: Tensor, rows: int, tile: int) -> Tensor:
    """Tiles of `tile` rows over samples of `lengths` int [B] with Σ lengths ≤ rows → int32 [n, 2] of (sample, first row)."""
    slots = rows // tile + len(lengths)
    ordered, samples = lengths.sort(descending=True, stable=True)
    tiles = (ordered + (tile - 1)) // tile
    ends = tiles.cumsum(0)
    slot = torch.arange(slots, device=lengths.device)
    place = torch.searchsorted(ends, slot, right=True).clamp_(max=max(len(lengths) - 1, 0))
    first = (slot - (ends - tiles)[place]) * tile
    sample = torch.where(slot < ends[-1:], samples[place], -1)
    return torch.stack([sample, first], 1).int()


def readers(kv_index: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """The inverse of `kv_index` [B]: (offsets int32 [blocks + 1], samples int32 [B]) listing who reads each block."""
    ordered, samples = kv_index.sort(stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(blocks + 1, device=kv_index.device, dtype=ordered.dtype))
    return offsets.int(), samples.int()
