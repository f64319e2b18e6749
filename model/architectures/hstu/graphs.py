"""Torch side of HSTU.

One layer (eq. 1–3 of arXiv:2402.17152), n = number of tokens that a state keeps:

    U, V, Q, K = split(SiLU(W_1 LN(x)))      A = SiLU(Q Kᵀ / √d_h + b(Δt)) / n · V      x ← x + W_2 (LN(A) ⊙ U)

b is the paper's relative bias of time, one table over log2 of the seconds between two tokens, shared by the heads; between
its entries it is interpolated, so that a rounding error of an engine cannot move a token to another entry. The order of
time stands for the order of positions, whose own bias is left out.

A token sees those that are older (of one age: those before it), and the token of user features, which is the oldest. There
is no softmax: a padded token has the value 0 and adds nothing, so only the history itself needs a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, beside, features
from model.architectures.hstu.config import HSTUConfig
from model.architectures.joined import recent
from model.architectures.terms import FeatureWidths
from model.layers.dropout import HiddenDropout
from model.layers.tokens import event_module
from model.schema import Schema
from model.signature import REQUEST_INDEX

EPS = 1e-6
BIASES = 26
"""Entries of the table: 1 s, 2 s, … 2^25 s (a year)."""
OLDEST_S = 2.0 ** (BIASES - 1)


class TimeBias(nn.Module):
    """b(Δt) of non-negative seconds of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(BIASES) * 0.02)

    def forward(self, seconds: Tensor) -> Tensor:
        place = torch.log2(1 + seconds).clamp(max=BIASES - 1.001)
        low = place.floor()
        index, share = low.long(), place - low
        return self.table[index] * (1 - share) + self.table[index + 1] * share


class Projections(nn.Module):
    """What a token of either side needs in a layer: U, V, Q, K, and the way back. [..., d]"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.uvqk = nn.Linear(width, 4 * width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return F.silu(self.uvqk(F.layer_norm(x, x.shape[-1:], eps=EPS))).chunk(4, dim=-1)

    def gated(self, x: Tensor, attended: Tensor, u: Tensor) -> Tensor:
        return x + self.out(F.layer_norm(attended, attended.shape[-1:], eps=EPS) * u)


class EncodeUser(EncodeGraph):
    """User features and histories → keys, values and time biases of every layer."""

    def __init__(self, schema: Schema, config: HSTUConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.heads, self.counts = config.heads, config.counts(widths.caps)
        self.user = nn.Linear(widths.user, config.width)
        self.events = nn.ModuleDict({event_module(e): nn.Linear(n, config.width) for e, n in widths.events.items()})
        self.layers = nn.ModuleList(Projections(config.width) for _ in range(config.layers - 1))
        self.last = nn.Linear(config.width, 2 * config.width)  # nothing reads the last layer's tokens, only its V and K
        self.time_bias = nn.ModuleList(TimeBias() for _ in range(config.layers))
        self.normaliser = 1 + sum(self.counts.values())

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        user = self.user(features(given, "user")).unsqueeze(1)
        tokens, ages, masks = [user], [torch.full_like(user[..., 0], OLDEST_S)], [torch.ones_like(user[..., :1])]
        for event, count in self.counts.items():
            history = recent(given, event, count, self.training)
            tokens.append(self.events[event_module(event)](history.features) * history.mask)
            ages.append(history.age_s)
            masks.append(history.mask)
        x, age, mask = torch.cat(tokens, dim=1), torch.cat(ages, dim=1), torch.cat(masks, dim=1)
        age = age.clamp(max=OLDEST_S)
        apart = age[:, None, :] - age[:, :, None]  # [U, i, j]: seconds that j is older than i
        earlier = torch.ones_like(apart).tril()
        visible = torch.where(apart > 0, torch.ones_like(apart), (apart == 0).to(x.dtype) * earlier) * mask.transpose(1, 2)
        states: list[Tensor] = []
        biases = list(self.time_bias)
        for layer, bias in zip(self.layers, biases, strict=False):
            assert isinstance(layer, Projections)
            u, v, q, k = layer.split(x)
            v = v * mask
            states += [k, v, bias(age)]
            queries, keys, values = self._heads(q), self._heads(k), self._heads(v)
            scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5 + bias(apart.clamp(min=0)).unsqueeze(1)
            attended = (F.silu(scores) * visible.unsqueeze(1) / self.normaliser) @ values
            x = layer.gated(x, attended.transpose(1, 2).flatten(2), u) * mask
        v, k = F.silu(self.last(F.layer_norm(x, x.shape[-1:], eps=EPS))).chunk(2, dim=-1)
        return (*states, k, v * mask, biases[-1](age))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CandidateLayer(nn.Module):
    """The candidate's token x [C, d] attends to the state of its request and to itself."""

    def __init__(self, width: int, heads: int, normaliser: int) -> None:
        super().__init__()
        self.projections = Projections(width)
        self.heads, self.normaliser = heads, normaliser
        self.own_bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """keys and values [C, n, d], bias [C, n], gathered from the requests."""
        u, v, q, k = self.projections.split(x)
        scale = (x.shape[-1] // self.heads) ** -0.5
        heads = (self.heads, -1)
        q, own_k, own_v = q.unflatten(-1, heads), k.unflatten(-1, heads), v.unflatten(-1, heads)  # [C, H, d_h]
        keys, values = (t.unflatten(-1, heads).transpose(1, 2) for t in (keys, values))  # [C, H, n, d_h]
        scores = (q.unsqueeze(2) @ keys.transpose(-1, -2)).squeeze(2) * scale + bias.unsqueeze(1)  # [C, H, n]
        own = F.silu((q * own_k).sum(-1, keepdim=True) * scale + self.own_bias)
        attended = ((F.silu(scores).unsqueeze(2) @ values).squeeze(2) + own * own_v) / self.normaliser
        return self.projections.gated(x, attended.flatten(1), u)


class ScoreCandidates(ScoreGraph):
    """Item and context features → the last token, through all layers, into a network → logits."""

    def __init__(self, schema: Schema, config: HSTUConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        normaliser = 1 + sum(config.counts(widths.caps).values())
        self.item = nn.Linear(widths.item, config.width)
        self.context = nn.Linear(widths.context, config.width, bias=False) if widths.context else None
        self.layers = nn.ModuleList(CandidateLayer(config.width, config.heads, normaliser) for _ in range(config.layers))
        self.head = nn.Linear(config.width, config.head_hidden)
        self.dropout = HiddenDropout()
        self.logits = nn.Linear(config.head_hidden, widths.tasks)

    def score(self, given: Given) -> Tensor:
        x, index, context = self.item(features(given, "item")), given[REQUEST_INDEX], beside(given, "context")
        if self.context is not None and context is not None:
            x = x + self.context(context).index_select(0, index)
        for number, layer in enumerate(self.layers):
            keys, values, bias = (given[f"state_{number}_{part}"].index_select(0, index) for part in ("keys", "values", "bias"))
            x = layer(x, keys, values, bias)
        return self.logits(self.dropout(F.silu(self.head(F.layer_norm(x, x.shape[-1:], eps=EPS)))))
