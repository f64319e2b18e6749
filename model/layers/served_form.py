"""Graphs have one form that is served and, where that would waste work in training, another that computes the same.

Engines want fixed sizes: a state that holds a history is padded to the history's cap, so that neither its shape nor a bit of a
score depends on how long somebody else's history is. Batches of training are as long as their longest history.
Export, golden batches and the FLOP count run in the served form; values differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_SERVED: ContextVar[bool] = ContextVar("served", default=False)


@contextmanager
def served_form() -> Iterator[None]:
    """Run graphs inside as they are served."""
    token = _SERVED.set(True)
    try:
        yield
    finally:
        _SERVED.reset(token)


def is_served_form() -> bool:
    """Whether a graph runs, or is traced, as it is served."""
    return _SERVED.get()


def padded_to_cap(x: Tensor, cap: int) -> Tensor:
    """x [B, T, …] with T ≤ cap; in the served form [B, cap, …], zeros after T."""
    if not is_served_form():
        return x
    # Not `pad(cap - T)`: a negative amount cannot be ruled out while tracing, and would become a guard on T.
    return torch.cat([x, x.new_zeros((x.shape[0], cap, *x.shape[2:]))], dim=1)[:, :cap]
