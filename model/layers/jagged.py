"""Histories as jagged rows: every event one row, one sample after the other, no padding between them.

Layers run on them where a graph is exported for engines with ragged operators, and on GPUs. What a row knows of its
place is made from the offsets inside the graph. Rows beyond the last offset (a batch filled up to its bucket) belong to no
sample: they are worked on row by row, with whatever is in them, and no sample ever reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_JAGGED: ContextVar[bool] = ContextVar("jagged", default=False)


@contextmanager
def jagged_form() -> Iterator[None]:
    """Run `encode_user` inside on jagged rows, where the architecture can: its inputs are those of `jagged_signature`."""
    token = _JAGGED.set(True)
    try:
        yield
    finally:
        _JAGGED.reset(token)


def is_jagged_form() -> bool:
    """Whether `encode_user` takes jagged rows."""
    return _JAGGED.get()


@dataclass(frozen=True)
class JaggedHistory:
    """One event type's histories: features [N, inputs], age_s [N], offsets int32 [B + 1]; at most `cap` rows per sample."""

    features: Tensor
    age_s: Tensor
    offsets: Tensor
    cap: int

    @property
    def samples(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Rows of every sample, int64 [B]."""
        return (self.offsets[1:] - self.offsets[:-1]).long()

    @cached_property
    def sample(self) -> Tensor:
        """Whose row it is, int64 [N]; the last sample for rows beyond all."""
        row = torch.arange(self.age_s.shape[0], device=self.offsets.device)
        before = (row[:, None] >= self.offsets[None, 1:-1]).long()  # [N, B - 1]: the samples that end before the row
        return before.sum(1)

    @cached_property
    def position(self) -> Tensor:
        """Place of every row in its sample, from 0, oldest first: int64 [N]."""
        row = torch.arange(self.age_s.shape[0], device=self.offsets.device)
        return row - self.offsets[:-1].long().index_select(0, self.sample)

    @cached_property
    def place(self) -> Tensor:
        """Place of every row counted from the newest of its sample, which has 0: int64 [N]."""
        return self.lengths.index_select(0, self.sample) - 1 - self.position

    def newest(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The last `count` rows of x [N, …] of every sample, newest last, and which of them exist (the others are zero).

        [B, count, …] and bool [B, count].
        """
        back = torch.arange(count, 0, -1, device=x.device)
        return self._rows(x, self.lengths[:, None] - back[None, :])

    def padded(self, x: Tensor) -> Tensor:
        """x [N, …] as [B, cap, …], zeros after every sample's end."""
        at = torch.arange(self.cap, device=x.device)[None, :].expand(self.samples, -1)
        return self._rows(x, at)[0]

    def blocks(self, size: int) -> Tensor:
        """Offsets of blocks of at most `size` rows that begin at every sample's start, int32 [B · ⌈cap / size⌉ + 1]."""
        starts = torch.arange(0, self.cap, size, device=self.offsets.device, dtype=torch.int32)
        begins = torch.minimum(self.offsets[:-1, None] + starts[None, :], self.offsets[1:, None])
        return torch.cat([begins.flatten(), self.offsets[-1:]])

    def _rows(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of x at places [B, n] of every sample, and which of the places exist."""
        exists = (at >= 0) & (at < self.lengths[:, None])
        row = torch.where(exists, at + self.offsets[:-1].long()[:, None], 0)
        found = x.index_select(0, row.flatten()).unflatten(0, (-1, at.shape[1]))
        shape = (*exists.shape, *[1] * (x.dim() - 1))
        return torch.where(exists.view(shape), found, 0.0), exists
