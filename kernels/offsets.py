"""What offsets and other index tensors of jagged rows must look like; every operator refuses the same ones with the same words.

Types and shapes cost nothing to check. Values are read only on a CPU: elsewhere that would wait for the GPU, and they are the
caller's promise.
"""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = (torch.int32, torch.int64)


def check_index(operator: str, name: str, index: Tensor, device: torch.device, entries: str = "entries") -> None:
    """Raise `ValueError` unless `index` is int32 or int64 of one dimension on `device`."""
    if index.dim() != 1 or index.dtype not in _INTEGERS or index.device != device:
        raise ValueError(
            f"{operator}: expected {name} as int32 or int64 [{entries}] on {device}, "
            f"found {index.dtype} {tuple(index.shape)} on {index.device}"
        )


def check_offsets(operator: str, name: str, offsets: Tensor, rows: Tensor, *, values: bool) -> None:
    """Raise `ValueError` unless `offsets` [B + 1] cut `rows` [sum, …] into samples; `values`: read them, too (on a CPU)."""
    check_index(operator, name, offsets, rows.device, "B + 1")
    if offsets.shape[0] < 1:
        raise ValueError(f"{operator}: expected {name} [B + 1] with at least one entry, found none")
    if not values or offsets.device.type != "cpu":
        return
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != rows.shape[0]:
        raise ValueError(f"{operator}: {name} run from {first} to {last}, expected from 0 to the {rows.shape[0]} rows")
    if bool((offsets.diff() < 0).any()):
        raise ValueError(f"{operator}: {name} decrease, expected non-decreasing row offsets")
