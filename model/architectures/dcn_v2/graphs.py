"""Torch side of DCN-V2.

Cross layer (eq. 1): x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l, with W_l = U_l V_lᵀ when a rank is given (eq. 2). The first layer's
product has the user's columns of x_0 multiplied once per request; from the second on, every column knows the candidate.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.dcn_v2.config import DCNv2Config, user_width
from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, features
from model.architectures.joined import JoinedLinear, JoinedNetwork, request_rows
from model.architectures.terms import FeatureWidths
from model.layers.dropout import HiddenDropout
from model.layers.tokens import length_mask
from model.schema import Schema
from model.signature import REQUEST_INDEX


class EncodeUser(EncodeGraph):
    """User features ‖ the mean event of every type (zeros for an empty history)."""

    def __init__(self, schema: Schema, config: DCNv2Config) -> None:
        super().__init__(schema, config)
        self.events = tuple(e.name for e in schema.events)

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        parts = [features(given, "user")]
        for event in self.events:
            events, lengths = features(given, event), given[f"{event}_length"]
            mask = length_mask(lengths, events.shape[1]).unsqueeze(-1)
            parts.append((events * mask).sum(1) / lengths.clamp(min=1).unsqueeze(-1))
        return (torch.cat(parts, dim=1),)


class CrossNetwork(nn.Module):
    """r [R, m], c [C, n] → x_L [C, m + n]."""

    def __init__(self, request_width: int, candidate_width: int, config: DCNv2Config) -> None:
        super().__init__()
        whole = request_width + candidate_width
        inner, rank = config.rank or whole, config.rank
        self.first = JoinedLinear(request_width, candidate_width, inner)
        self.later = nn.ModuleList(nn.Linear(whole, inner, bias=rank is None) for _ in range(config.cross_layers - 1))
        self.lift = nn.ModuleList(nn.Linear(rank, whole) for _ in range(config.cross_layers)) if rank is not None else None

    def forward(self, r: Tensor, c: Tensor, request_index: Tensor) -> Tensor:
        x0 = torch.cat([r.index_select(0, request_index), c], dim=1)
        x = x0 + x0 * self._lifted(0, self.first(r, c, request_index))
        for number, layer in enumerate(self.later, start=1):
            x = x + x0 * self._lifted(number, layer(x))
        return x

    def _lifted(self, layer: int, inner: Tensor) -> Tensor:
        return inner if self.lift is None else self.lift[layer](inner)


class ScoreCandidates(ScoreGraph):
    """Crosses of all features, and a network on them (stacked) or beside them (parallel)."""

    def __init__(self, schema: Schema, config: DCNv2Config) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        request, candidate = user_width(widths) + widths.context, widths.item
        self.crosses = CrossNetwork(request, candidate, config)
        self.dropout = HiddenDropout()
        self.stacked = config.structure == "stacked"
        if self.stacked:
            sizes = (request + candidate, *config.hidden)
            self.network = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.logits = nn.Linear(sizes[-1], widths.tasks)
        else:
            self.beside = JoinedNetwork(request, candidate, config.hidden, widths.tasks)
            self.logits = nn.Linear(request + candidate, widths.tasks, bias=False)

    def score(self, given: Given) -> Tensor:
        r, c, index = request_rows(given, given["state_user"]), features(given, "item"), given[REQUEST_INDEX]
        x = self.crosses(r, c, index)
        if not self.stacked:  # one linear head over [x_L ‖ h] (eq. 5), its second half inside `beside`
            return self.logits(x) + self.beside(r, c, index)
        for layer in self.network:
            x = self.dropout(F.relu(layer(x)))
        return self.logits(x)
