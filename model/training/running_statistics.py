"""Running statistics of normalisations (`Dice`), which a forward pass in training updates before anyone has seen its loss.

A step that is not finite must not reach the model, and these are part of it: a NaN would stay in a running mean for good. So
they are remembered before every step and put back after one that is not taken. Models without such layers pay nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Buffers of every batch normalisation of a model, and what they were before the step."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers: list[Tensor] = [b for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Call before the forward pass."""
        self._before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what `remember` saw."""
        for buffer, before in zip(self.buffers, self._before, strict=True):
            buffer.copy_(before)
