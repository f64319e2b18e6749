"""Torch side of InterFormer.

Per layer l (§4 of arXiv:2411.09852), with Gate(Z) = Z ⊙ σ(MLP(Z)) and CLS = X_sum^(0) in front of every sequence:

    X_sum = Gate(LCE(X))                               LCE: a linear compression of the token axis, n → n_sum
    S     ← S + MHA(LN(S) W),  W = f(X_sum) ∈ R^{d×d}   PFFN with a matrix per example; MHA with rotary positions
    S_sum = Gate([CLS ‖ PMA(S) ‖ newest K])
    X     ← Interaction([X ‖ S_sum of every sequence])

and ŷ = MLP([X_sum^(L) ‖ S_sum^(L)]). X and S of a layer are both made from those of the layer before. Where the paper is
silent: the residual and norm around PFFN and MHA, and one Wukong expert as the interaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, features
from model.architectures.interformer.config import InterFormerConfig
from model.architectures.joined import CandidateTokens, recent
from model.architectures.terms import FeatureWidths
from model.layers.dropout import HiddenDropout
from model.layers.rote import RotaryTemporal
from model.layers.tokens import FlatTokens, event_module
from model.layers.wukong import WukongExpert
from model.schema import Schema
from model.signature import REQUEST_INDEX

_MASKED = -3.0e4


class EncodeUser(EncodeGraph):
    """User features and histories → user tokens, and every type's tokens with their mask."""

    def __init__(self, schema: Schema, config: InterFormerConfig) -> None:
        super().__init__(schema, config)
        widths, d = FeatureWidths.of(schema), config.width
        self.counts, self.recent_tokens = config.counts(widths.caps), config.recent_tokens
        self.user = FlatTokens(widths.user, config.user_tokens, d)
        self.events = nn.ModuleDict(
            {event_module(e): nn.Sequential(nn.Linear(n, d), nn.SiLU(), nn.Linear(d, d)) for e, n in widths.events.items()}
        )

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        states = [self.user(features(given, "user"))]
        for event, count in self.counts.items():
            history = recent(given, event, count, self.training, self.recent_tokens)
            states += [self.events[event_module(event)](history.features) * history.mask, history.mask.squeeze(-1)]
        return tuple(states)


class Gate(nn.Module):
    """Gate(Z) = Z ⊙ σ(MLP(Z)), token by token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.network(z).sigmoid()


class SetSummary(nn.Module):
    """X [C, n, d] → X_sum [C, n_sum, d]."""

    def __init__(self, tokens: int, summary: int, width: int) -> None:
        super().__init__()
        self.compress = nn.Parameter(torch.randn(summary, tokens) / tokens**0.5)
        self.gate = Gate(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.compress @ x)


class SequenceLayer(nn.Module):
    """S ← S + MHA(PFFN(X_sum, LN S)); S [C, T, d], mask [C, T]."""

    def __init__(self, width: int, heads: int, summary: int) -> None:
        super().__init__()
        self.width, self.heads, self.cls = width, heads, summary
        self.generate = nn.Linear(summary * width, width * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        pairs = width // heads // 2
        self.theta: Tensor
        self.register_buffer("theta", 10_000.0 ** -(torch.arange(pairs) / pairs), persistent=False)

    def forward(self, s: Tensor, x_sum: Tensor, mask: Tensor) -> Tensor:
        weight = self.generate(x_sum.flatten(1)).unflatten(-1, (self.width, self.width))
        mixed = F.layer_norm(s, s.shape[-1:]) @ weight * self.width**-0.5
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(mixed).chunk(3, -1))
        angle = self._positions(s.shape[1] - self.cls).unsqueeze(1) * self.theta
        q, k = (RotaryTemporal.rotate(x, angle.cos(), angle.sin()) for x in (q, k))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(mask[:, None, None, :] == 0, _MASKED).softmax(-1)
        return s + self.out((weights @ v).transpose(1, 2).flatten(2)) * mask.unsqueeze(-1)

    def _positions(self, events: int) -> Tensor:
        """CLS tokens 1, 2, …; events …, −1, 0: the newest is 0 however much padding is in front."""
        device = self.theta.device
        return torch.cat([torch.arange(1, self.cls + 1, device=device), torch.arange(1 - events, 1, device=device)])


class SequenceSummary(nn.Module):
    """S_sum = Gate([CLS ‖ PMA(S) ‖ newest K]): S [C, n_sum + T, d], mask alike → [C, summary tokens, d]."""

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.cls, self.recent, self.heads = config.cls_tokens, config.recent_tokens, config.heads
        self.seeds = nn.Parameter(torch.randn(config.heads, config.pooled_tokens, config.width // config.heads))
        self.kv = nn.Linear(config.width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.gate = Gate(config.width)

    def forward(self, s: Tensor, mask: Tensor) -> Tensor:
        k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.kv(s).chunk(2, -1))
        scores = self.seeds @ k.transpose(-1, -2) * k.shape[-1] ** -0.5
        weights = scores.masked_fill(mask[:, None, None, :] == 0, _MASKED).softmax(-1)
        pooled = self.out((weights @ v).transpose(1, 2).flatten(2))
        return self.gate(torch.cat([s[:, : self.cls], pooled, s[:, -self.recent :]], dim=1))


class Layer(nn.Module):
    """One layer over (X, S of every type): the sequences' summaries go into X, X_sum into the sequences."""

    def __init__(self, config: InterFormerConfig, towers: int) -> None:
        super().__init__()
        d, n = config.width, config.set_tokens
        self.summaries = nn.ModuleList(SequenceSummary(config) for _ in range(towers))
        self.sequences = nn.ModuleList(SequenceLayer(d, config.heads, config.cls_tokens) for _ in range(towers))
        self.interact = WukongExpert(n + towers * config.summary_tokens, n, d, config.fm_rank, config.hidden)

    def forward(
        self, x: Tensor, x_sum: Tensor, sequences: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        summaries = [summary(s, mask) for summary, s, mask in zip(self.summaries, sequences, masks, strict=True)]
        refined = [layer(s, x_sum, mask) for layer, s, mask in zip(self.sequences, sequences, masks, strict=True)]
        return self.interact(torch.cat([x, *summaries], dim=1)), refined


class ScoreCandidates(ScoreGraph):
    """The whole network, once per candidate."""

    def __init__(self, schema: Schema, config: InterFormerConfig) -> None:
        super().__init__(schema, config)
        widths, d = FeatureWidths.of(schema), config.width
        self.events, towers = tuple(widths.events), len(widths.events)
        self.cls = config.cls_tokens
        self.tokens = CandidateTokens(widths.context, widths.item, config.candidate_tokens, d)
        self.set_summaries = nn.ModuleList(
            SetSummary(config.set_tokens, config.cls_tokens, d) for _ in range(config.layers + 1)
        )
        self.layers = nn.ModuleList(Layer(config, towers) for _ in range(config.layers))
        self.last = nn.ModuleList(SequenceSummary(config) for _ in range(towers))
        self.head = nn.Linear((config.cls_tokens + towers * config.summary_tokens) * d, config.head_hidden)
        self.dropout = HiddenDropout()
        self.logits = nn.Linear(config.head_hidden, widths.tasks)

    def score(self, given: Given) -> Tensor:
        index = given[REQUEST_INDEX]
        x = torch.cat([given["state_user"].index_select(0, index), self.tokens(given)], dim=1)
        x_sum = self.set_summaries[0](x)
        sequences = [torch.cat([x_sum, given[f"state_{e}_tokens"].index_select(0, index)], dim=1) for e in self.events]
        masks = [self._mask(given[f"state_{e}_mask"]).index_select(0, index) for e in self.events]
        for number, layer in enumerate(self.layers):
            x, sequences = layer(x, x_sum, sequences, masks)
            x_sum = self.set_summaries[number + 1](x)
        summaries = [summary(s, mask) for summary, s, mask in zip(self.last, sequences, masks, strict=True)]
        return self.logits(self.dropout(F.silu(self.head(torch.cat([x_sum, *summaries], dim=1).flatten(1)))))

    def _mask(self, mask: Tensor) -> Tensor:
        """With the CLS tokens, which are always real."""
        return F.pad(mask, (self.cls, 0), value=1.0)
