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


_CUBE, _LINEAR = 0.044715, 0.7978845608028654  # tanh-GELU: ½x(1 + tanh(√(2/π) (x + 0.044715 x³)))


def _fast_gelu_derivative(x: Tensor) -> Tensor:
    t = torch.tanh(_LINEAR * (x + _CUBE * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _LINEAR * (1 + 3 * _CUBE * x * x)


def _gelu_derivative(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


_DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": torch.ones_like,
    "relu": lambda x: (x > 0).to(x.dtype),
    "leaky_relu": lambda x: torch.where(x > 0, torch.ones_like(x), 0.01),
    "relu_square": lambda x: 2 * F.relu(x),
    "gelu": _gelu_derivative,
    "fast_gelu": _fast_gelu_derivative,
    "silu": lambda x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
    "hardswish": lambda x: torch.where(x.abs() < 3, x / 3 + 0.5, (x > 0).to(x.dtype)),
}


def derivative(scores: Tensor, names: tuple[str, ...], head_dim: int) -> Tensor:
    """Act′ as `activate` is Act; at the kinks of relu and its relatives the value from the left."""
    if len(names) == 1:
        return _DERIVATIVES[names[0]](scores)
    parts = zip(names, scores.unbind(head_dim), strict=True)
    return torch.stack([_DERIVATIVES[name](part) for name, part in parts], head_dim)
