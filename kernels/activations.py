"""The activations of GDPA (Kunlun, Fig. 1), by name. Every one maps 0 to 0, so zero rows stay zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "relu_square": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "fast_gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
}
NAMES = tuple(_BY_NAME)


def activate(scores: Tensor, names: tuple[str, ...], head_dim: int) -> Tensor:
    """Apply one activation (len(names) == 1) or one per head along dimension `head_dim`."""
    if len(names) == 1:
        return _by_name(names[0])(scores)
    if len(names) != scores.shape[head_dim]:
        raise ValueError(f"activation: expected 1 or {scores.shape[head_dim]} names (one per head), found {len(names)}")
    parts = scores.unbind(head_dim)
    return torch.stack([_by_name(n)(p) for n, p in zip(names, parts, strict=True)], head_dim)


def _by_name(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _BY_NAME:
        raise ValueError(f"activation: expected one of {', '.join(NAMES)}, found {name!r}")
    return _BY_NAME[name]
