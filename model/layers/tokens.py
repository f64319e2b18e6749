"""Features → tokens: the first stage of every stream.

User and candidate features are flattened and mapped to a fixed number of tokens by one large
product (`FlatTokens`); history events become one token each through a two-layer network
(`HistoryTokens`). Padding tokens are zero from here on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FlatTokens(nn.Module):
    """Concatenated features [N, inputs] → tokens [N, tokens, width], layer-normed."""

    def __init__(self, inputs: int, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        self.project = nn.Linear(inputs, tokens * width)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.project(features).unflatten(-1, (self.tokens, self.width))
        return F.layer_norm(tokens, (self.width,))


class HistoryTokens(nn.Module):
    """Event features [B, T, inputs] → tokens [B, T, width]; rows at or beyond `lengths` are zero."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lift = nn.Linear(inputs, width)
        self.mix = nn.Linear(width, width)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        tokens = self.mix(F.silu(self.lift(features)))
        return tokens * length_mask(lengths, features.shape[1]).unsqueeze(-1)


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """1.0 where a step is real, float32 [B, T]."""
    return (torch.arange(steps, device=lengths.device)[None, :] < lengths[:, None]).to(torch.float32)
