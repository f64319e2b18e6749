"""One layer of the Kunlun stack: (X, S, H) → (X, S, H), the same in both wirings.

X [B, n, d] are set tokens, S_e [B, T_e, d_e] the sequence and H_e the summary of event type e. A global layer runs Weight
Generation, the PFFN and pooling; an attention layer reuses the last H (CompSkip). What a layer skips does not exist
in it. One tower per event type (event-level personalization).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.dispatch import Jagged, pffn
from model.architectures.kunlun.options import Pffn, Pooling, TowerConfig
from model.architectures.kunlun.stack import StackConfig
from model.layers.jagged import JaggedHistory
from model.layers.seed_pooling import AttentionPooling, HierarchicalSeedPooling
from model.layers.self_attention import SelfAttention
from model.layers.tokens import event_module
from model.layers.weight_generation import ContextSummary, GeneratedLinear, GeneratedWeights, LearnedWeights
from model.layers.wukong import WukongMixture


@dataclass(frozen=True)
class HistoryInput:
    """One event type's padded histories: features [B, T, inputs], age_s [B, T], lengths int64 [B]."""

    features: Tensor
    age_s: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Sequence:
    """What a layer needs to know of one event type's sequence beside S: age_s [B, T], lengths int64 [B].

    `normed`: LayerNorm(S) of layer 0 [B, T, d_e], where it has been made before (the `exact` wiring shares it).
    """

    age_s: Tensor
    lengths: Tensor
    normed: Tensor | None = None


class GlobalStep(nn.Module):
    """Global part of a layer for one tower: PFFN, then pooling and the lift to the model width."""

    def __init__(self, config: StackConfig, tower: TowerConfig, cap: int) -> None:
        super().__init__()
        activation = (config.activation,) if isinstance(config.activation, str) else config.activation
        names = tuple(map(str, activation))
        self.heads, self.n_recent = tower.heads, tower.n_recent
        self.weights: GeneratedWeights | LearnedWeights | GeneratedLinear
        match config.pffn:
            case Pffn.GDPA:
                self.weights = GeneratedWeights(
                    config.width, tower.width, tower.heads, config.n_kv, cap, config.scale.value, names
                )
            case Pffn.FFN:
                self.weights = LearnedWeights(tower.width, tower.heads, config.n_kv, cap, config.scale.value, names)
            case Pffn.GENERATED_LINEAR:
                self.weights = GeneratedLinear(config.width, tower.width, config.n_kv)
        self.pool: AttentionPooling
        if tower.pooling is Pooling.PMA:
            self.pool = AttentionPooling(tower.width, tower.heads, tower.n_tokens)
        else:
            self.pool = HierarchicalSeedPooling(
                tower.width,
                tower.heads,
                tower.n_seeds,
                tower.n_tokens,
                tower.kronecker_rank,
                activation=names if tower.pooling is Pooling.GDPA else None,
            )
        self.lift = nn.Linear(tower.width, config.width, bias=False)

    def forward(self, s: Tensor, x_sum: Tensor | None, sequence: Sequence) -> tuple[Tensor, Tensor]:
        s = self._update(s, x_sum, sequence)
        summary = self.pool(s, sequence.lengths)
        if self.n_recent:
            summary = torch.cat([summary, newest_tokens(s, sequence.lengths, self.n_recent)], dim=1)
        return s, self.lift(summary)

    def jagged(self, s: Tensor, x_sum: Tensor | None, history: JaggedHistory) -> tuple[Tensor, Tensor]:
        """The same on jagged rows s [N, d_e]; not for `generated_linear`, whose product differs per row."""
        if isinstance(self.weights, LearnedWeights):
            k, v = self.weights(history.samples)
        else:
            assert isinstance(self.weights, GeneratedWeights)
            assert x_sum is not None
            k, v = self.weights(x_sum)
        rows = Jagged(history.offsets, k.shape[1], max_length=history.cap)
        heads = s.unflatten(-1, (self.heads, -1))
        s = pffn(heads, k.flatten(0, 1), v.flatten(0, 1), self.weights.params, rows).flatten(1)
        summary = self.pool.jagged(s, history)
        if self.n_recent:
            newest, exists = history.newest(s, self.n_recent)
            newest = F.layer_norm(newest, newest.shape[-1:]) * exists.to(s.dtype).unsqueeze(-1)
            summary = torch.cat([summary, newest], dim=1)
        return s, self.lift(summary)

    def _update(self, s: Tensor, x_sum: Tensor | None, sequence: Sequence) -> Tensor:
        if isinstance(self.weights, LearnedWeights):
            k, v = self.weights(s.shape[0])
        else:
            assert x_sum is not None
            if isinstance(self.weights, GeneratedLinear):
                return self.weights(s, x_sum)
            k, v = self.weights(x_sum)
        heads = s.unflatten(-1, (self.heads, -1))
        return pffn(heads, k, v, self.weights.params, lengths=sequence.lengths, normed=sequence.normed).flatten(2)


class KunlunLayer(nn.Module):
    """The towers' steps and Global Interaction of layer `layer`; `caps`: history cap per event type."""

    def __init__(self, config: StackConfig, caps: Mapping[str, int], layer: int) -> None:
        super().__init__()
        self.is_global = config.is_global(layer)
        self.events = [e for e in caps if layer < config.tower(e).layers]
        self.names = {e: event_module(config.parameters_of(e)) for e in caps}
        built = config.caps(caps)
        self.summary = (
            ContextSummary(config.interacting_tokens, config.n_kv, config.width)
            if self.is_global and self.events and config.pffn is not Pffn.FFN
            else None
        )
        steps: dict[str, nn.Module] = {}
        for event in self.events:
            if self.names[event] not in steps:
                steps[self.names[event]] = (
                    GlobalStep(config, config.tower(event), built[event])
                    if self.is_global
                    else SelfAttention(config, config.tower(event), built[event])
                )
        self.steps = nn.ModuleDict(steps)
        attention: dict[str, nn.Module] = {}
        for event in self.events:  # without CompSkip a layer attends as well
            if self.is_global and config.attends(event, layer) and self.names[event] not in attention:
                attention[self.names[event]] = SelfAttention(config, config.tower(event), built[event])
        self.attention = nn.ModuleDict(attention)
        self.interact = WukongMixture(
            config.interacting_tokens, config.summary_tokens(caps), config.width, config.user_interaction
        )

    def advance(
        self, x: Tensor, s: Mapping[str, Tensor], h: Mapping[str, Tensor], sequences: Mapping[str, Sequence | JaggedHistory]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """(X, S, H) → (X, S, H, all of H side by side); H of a skipped step is the same tensor, reused. Jagged S: [N, d_e]."""
        s, h = dict(s), dict(h)
        x_sum = self.summary(x) if self.summary is not None else None
        for event in self.events:
            step, sequence = self.steps[self.names[event]], sequences[event]
            if isinstance(step, GlobalStep):
                if isinstance(sequence, JaggedHistory):
                    s[event], h[event] = step.jagged(s[event], x_sum, sequence)
                else:
                    s[event], h[event] = step(s[event], x_sum, sequence)
            else:
                s[event] = _attended(step, s[event], sequence)
            if self.names[event] in self.attention:
                s[event] = _attended(self.attention[self.names[event]], s[event], sequence)
        summary = torch.cat(list(h.values()), dim=1)
        return self.interact(x, summary), s, h, summary


def _attended(attention: nn.Module, s: Tensor, sequence: Sequence | JaggedHistory) -> Tensor:
    assert isinstance(attention, SelfAttention)
    if isinstance(sequence, JaggedHistory):
        return attention.jagged(s, sequence)
    attended: Tensor = attention(s, sequence.age_s, sequence.lengths)
    return attended


def newest_tokens(s: Tensor, lengths: Tensor, count: int) -> Tensor:
    """LN of the last `count` tokens of S [B, T, d], newest last; zero rows where a history is shorter. [B, count, d]"""
    back = torch.arange(count, 0, -1, device=s.device)
    at = lengths[:, None] - back[None, :]  # [B, count]
    rows = s.gather(1, at.clamp(min=0).unsqueeze(-1).expand(-1, -1, s.shape[-1]))
    return F.layer_norm(rows, rows.shape[-1:]) * (at >= 0).to(s.dtype).unsqueeze(-1)
