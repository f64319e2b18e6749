"""The user stream: features and histories of one user → the user state R_0 … R_{L-1} (`user_split`).

Runs once per user state and knows no candidate, no context and no request time: the Kunlun stack on user tokens, with a few
tokens R_l of every layer as the only thing that leaves.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kernels.gdpa.reference import rms_norm
from model.architectures.kunlun.config import KunlunConfig
from model.architectures.kunlun.stack import StackConfig
from model.architectures.terms import FeatureWidths
from model.layers.jagged import JaggedHistory
from model.layers.kunlun_layer import HistoryInput, KunlunLayer, Sequence
from model.layers.tokens import FlatTokens, HistoryTokens, event_module


class UserLayer(KunlunLayer):
    """A layer and the state tensor R_l = RMSNorm(W · [X ‖ H] · P)."""

    def __init__(self, config: KunlunConfig, caps: Mapping[str, int], layer: int) -> None:
        super().__init__(config, caps, layer)
        tokens = config.user_tokens + config.summary_tokens(caps)
        self.state_mix = nn.Parameter(torch.randn(config.state_tokens, tokens) / tokens**0.5)
        self.state_project = nn.Linear(config.width, config.candidate.width, bias=False)

    def forward(
        self, x: Tensor, s: dict[str, Tensor], h: dict[str, Tensor], sequences: Mapping[str, Sequence | JaggedHistory]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """(X, S, H) → (X, S, H, R_l)."""
        x, s, h, summary = self.advance(x, s, h, sequences)
        return x, s, h, rms_norm(self.state_project(self.state_mix @ torch.cat([x, summary], dim=1)))


class UserStream(nn.Module):
    """User features [B, inputs] and histories per event type → states, L × [B, state_tokens, candidate width], and last S."""

    def __init__(self, config: KunlunConfig, widths: FeatureWidths) -> None:
        super().__init__()
        self.user_tokens = FlatTokens(widths.user, config.user_tokens, config.width)
        self.history_tokens = history_tokens(config, widths)
        self.layers = nn.ModuleList(UserLayer(config, widths.caps, layer) for layer in range(config.layers))

    def forward(self, user: Tensor, histories: Mapping[str, HistoryInput]) -> tuple[list[Tensor], dict[str, Tensor]]:
        s = {e: self.history_tokens[event_module(e)](h.features, h.lengths) for e, h in histories.items()}
        return self._run(self.user_tokens(user), s, {e: Sequence(h.age_s, h.lengths) for e, h in histories.items()})

    def jagged(self, user: Tensor, histories: Mapping[str, JaggedHistory]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The same from jagged histories; last S are jagged rows."""
        tokens = {e: self.history_tokens[event_module(e)] for e in histories}
        s = {e: network.jagged(histories[e]) for e, network in tokens.items() if isinstance(network, HistoryTokens)}
        return self._run(self.user_tokens(user), s, histories)

    def _run(
        self, x: Tensor, s: dict[str, Tensor], sequences: Mapping[str, Sequence | JaggedHistory]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        h: dict[str, Tensor] = {}
        states = []
        for layer in self.layers:
            x, s, h, state = layer(x, s, h, sequences)
            states.append(state)
        return states, s


def history_tokens(config: StackConfig, widths: FeatureWidths) -> nn.ModuleDict:
    """Token networks of every event type; their inputs differ, so they are never shared."""
    return nn.ModuleDict(
        {
            event_module(e): HistoryTokens(
                inputs, config.tower(e).width, config.event_tokens, widths.caps[e] if config.place_embedding else 0
            )
            for e, inputs in widths.events.items()
        }
    )
