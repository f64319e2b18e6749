"""The user stream: features and histories of one user → the user state R_0 … R_{L-1} (`user_split`).

Runs once per user state and knows no candidate, no context and no request time. Even layers run
Weight Generation, GDPA-PFFN and HSP, odd layers self-attention and reuse the last summary (CompSkip);
what a layer skips does not exist in it. One tower per event type (event-level personalization).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.dispatch import pffn
from kernels.gdpa.reference import rms_norm
from model.architectures.kunlun.config import KunlunConfig, TowerConfig
from model.layers.seed_pooling import HierarchicalSeedPooling
from model.layers.sliding_window import SlidingWindowAttention
from model.layers.tokens import FlatTokens, HistoryTokens
from model.layers.weight_generation import ContextSummary, GeneratedWeights
from model.layers.wukong import WukongMixture


@dataclass(frozen=True)
class HistoryInput:
    """One event type's padded histories: features [B, T, inputs], age_s [B, T], lengths int64 [B]."""

    features: Tensor
    age_s: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class TowerInput:
    """Static facts of a tower: its event type's input width and history cap."""

    inputs: int
    cap: int


class GlobalStep(nn.Module):
    """Even layer of one tower: PFFN with generated weights, then HSP and the lift to the model width."""

    def __init__(self, config: KunlunConfig, tower: TowerConfig, cap: int) -> None:
        super().__init__()
        activation = (config.activation,) if isinstance(config.activation, str) else config.activation
        self.heads = tower.heads
        self.weights = GeneratedWeights(
            config.width, tower.width, tower.heads, config.n_kv, cap, config.scale.value, tuple(map(str, activation))
        )
        self.pool = HierarchicalSeedPooling(tower.width, tower.heads, tower.n_seeds, tower.n_tokens, tower.kronecker_rank)
        self.lift = nn.Linear(tower.width, config.width, bias=False)

    def forward(self, s: Tensor, x_sum: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.weights(x_sum)
        s = pffn(s.unflatten(-1, (self.heads, -1)), k, v, self.weights.params, lengths=lengths).flatten(2)
        return s, self.lift(self.pool(s, lengths))


class UserLayer(nn.Module):
    """One layer of the user stream: the towers' steps, Global Interaction, and the state tensor R_l."""

    def __init__(self, config: KunlunConfig, towers: Mapping[str, TowerInput], layer: int) -> None:
        super().__init__()
        self.is_global = layer % 2 == 0
        self.events = [e for e in towers if layer < config.tower(e).layers]
        summary_tokens = sum(config.tower(e).n_tokens for e in towers)
        if self.is_global and self.events:
            self.summary = ContextSummary(config.user_tokens, config.n_kv, config.width)
        steps = {}
        for event in self.events:
            tower_input = towers[event]
            tower = config.tower(event)
            steps[event_module(event)] = (
                GlobalStep(config, tower, tower_input.cap)
                if self.is_global
                else SlidingWindowAttention(tower.width, tower.heads, tower.window, tower_input.cap, config.time_scale_s)
            )
        self.steps = nn.ModuleDict(steps)
        mix = config.user_interaction
        self.interact = WukongMixture(config.user_tokens, summary_tokens, config.width, mix.experts, mix.fm_rank, mix.hidden)
        tokens = config.user_tokens + summary_tokens
        self.state_mix = nn.Parameter(torch.randn(config.state_tokens, tokens) / tokens**0.5)
        self.state_project = nn.Linear(config.width, config.candidate.width, bias=False)

    def forward(
        self, x: Tensor, s: dict[str, Tensor], h: dict[str, Tensor], histories: Mapping[str, HistoryInput]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """(X, S, H) → (X, S, H, R_l); H of a skipped step is the same tensor, reused."""
        s, h = dict(s), dict(h)
        if self.is_global and self.events:
            x_sum = self.summary(x)
            for event in self.events:
                s[event], h[event] = self.steps[event_module(event)](s[event], x_sum, histories[event].lengths)
        else:
            for event in self.events:
                history = histories[event]
                s[event] = self.steps[event_module(event)](s[event], history.age_s, history.lengths)
        summary = torch.cat(list(h.values()), dim=1)
        x = self.interact(x, summary)
        state = rms_norm(self.state_project(self.state_mix @ torch.cat([x, summary], dim=1)))
        return x, s, h, state


class UserStream(nn.Module):
    """User features [B, inputs] and histories per event type → states, L × [B, state_tokens, candidate width], and last S."""

    def __init__(self, config: KunlunConfig, user_inputs: int, towers: Mapping[str, TowerInput]) -> None:
        super().__init__()
        self.user_tokens = FlatTokens(user_inputs, config.user_tokens, config.width)
        self.events = list(towers)
        self.history_tokens = nn.ModuleDict(
            {event_module(e): HistoryTokens(t.inputs, config.tower(e).width) for e, t in towers.items()}
        )
        self.layers = nn.ModuleList(UserLayer(config, towers, layer) for layer in range(config.layers))

    def forward(self, user: Tensor, histories: Mapping[str, HistoryInput]) -> tuple[list[Tensor], dict[str, Tensor]]:
        x = self.user_tokens(user)
        s = {e: self.history_tokens[event_module(e)](histories[e].features, histories[e].lengths) for e in self.events}
        h: dict[str, Tensor] = {}
        states = []
        for layer in self.layers:
            x, s, h, state = layer(x, s, h, histories)
            states.append(state)
        return states, s


def event_module(event: str) -> str:
    """Module key of an event type; bare names such as `apply` or `type` would clash with attributes of modules."""
    return f"event_{event}"
