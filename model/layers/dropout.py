"""Dropout that architectures offer at their hidden layers and a training run turns on; in nothing that is served."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class HiddenDropout(nn.Module):
    """Identity unless training with a `rate` above 0, which `set_hidden_dropout` sets."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate) if self.training and self.rate > 0 else x


def set_hidden_dropout(model: nn.Module, rate: float) -> int:
    """Set the rate of every `HiddenDropout` of a model; returns how many there are."""
    found = [module for module in model.modules() if isinstance(module, HiddenDropout)]
    for module in found:
        module.rate = rate
    return len(found)
