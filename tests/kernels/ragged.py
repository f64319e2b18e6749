"""Ragged batches and the yardstick of the kernel tests."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [3, 0, 37, 1, 16]  # few rows, none, several tiles and a bit, a single row, a whole tile
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Largest relative error in the L2 norm against float64, for operands of each dtype."""


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)


def rows(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Normal rows, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖; NaN and infinities in `got` never pass."""
    return float((got.detach().double() - want).norm() / want.norm()) if torch.isfinite(got).all() else float("inf")
