"""Features → tokens: the first stage of every stream.

User and candidate features are flattened and mapped to a fixed number of tokens by one large
product (`FlatTokens`); history events become one token each through a two-layer network
(`HistoryTokens`). Padding tokens are zero from here on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.base import EMBEDDING_DEVIATION
from model.architectures.kunlun.options import EventTokens
from model.architectures.terms import PRODUCT_WIDTH
from model.layers.jagged import JaggedHistory

PLACE_DEVIATION = 0.5
"""Of the vectors of places at start; attributes are lifted to about as much."""


def row_invariant_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)` with the inner width padded by zeros to a multiple of `PRODUCT_WIDTH`: [N, inputs] → [N, outputs].

    For products with one row per user or request. With another inner width a CPU that multiplies bf16 in
    tiles (AMX) takes another kernel for a single row, whose sums differ in the last bit from a batch's.
    """
    padding = (0, -linear.in_features % PRODUCT_WIDTH)
    return F.linear(F.pad(x, padding), F.pad(linear.weight, padding), linear.bias)


class FlatTokens(nn.Module):
    """Concatenated features [N, inputs] → tokens [N, tokens, width], layer-normed."""

    def __init__(self, inputs: int, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        self.project = nn.Linear(inputs, tokens * width)

    def forward(self, features: Tensor) -> Tensor:
        tokens = row_invariant_linear(self.project, features).unflatten(-1, (self.tokens, self.width))
        return F.layer_norm(tokens, (self.width,))


class HistoryTokens(nn.Module):
    """Event features [B, T, inputs] → tokens [B, T, width]; rows at or beyond `lengths` are zero.

    Aligned attribute streams of the same events lie side by side in `features`; `masknet` scales each by a mask made
    from all of them, as InterFormer merges its sequences: MLP(F ⊙ MLP_mask(F)).

    `places`: the token also knows its place counted from the newest event, by a learned vector for each of the first `places`
    (later ones share the last). Attention by ROTE sees differences of positions alone, and pooling sees none, so without
    it a model finds out who is newest only by who has nobody after it. Attributes are then lifted to unit deviation, so
    that neither drowns the other.
    """

    def __init__(self, inputs: int, width: int, kind: EventTokens = EventTokens.MLP, places: int = 0) -> None:
        super().__init__()
        self.lift = nn.Linear(inputs, width)
        self.mix = nn.Linear(width, width)
        self.places: nn.Parameter | None = None
        if places:
            self.places = nn.Parameter(torch.randn(places, width) * PLACE_DEVIATION)
            with torch.no_grad():
                self.lift.weight.mul_(1 / EMBEDDING_DEVIATION)
                self.lift.bias.zero_()
                self.mix.bias.zero_()
        self.mask = (
            nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, inputs))
            if kind is EventTokens.MASKNET
            else None
        )

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(features.shape[1], device=lengths.device)
        tokens = self._tokens(features, lengths[:, None] - 1 - steps if self.places is not None else None)
        return tokens * length_mask(lengths, features.shape[1]).unsqueeze(-1)  # places of padding are masked here

    def jagged(self, history: JaggedHistory) -> Tensor:
        """The same on jagged rows: [N, width]."""
        return self._tokens(history.features, history.place if self.places is not None else None)

    def _tokens(self, features: Tensor, place: Tensor | None) -> Tensor:
        """`place`: counted from the newest event, which has 0."""
        if self.mask is not None:
            features = features * self.mask(features)
        lifted = self.lift(features)
        if self.places is not None and place is not None:
            lifted = lifted + self.places[place.clamp(0, self.places.shape[0] - 1)]
        return self.mix(F.silu(lifted))


def event_module(event: str) -> str:
    """Module key of an event type; bare names such as `apply` or `type` would clash with attributes of modules."""
    return f"event_{event}"


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """1.0 where a step is real, float32 [B, T]."""
    return (torch.arange(steps, device=lengths.device)[None, :] < lengths[:, None]).to(torch.float32)
