"""Torch side of the Deep Interest Network.

Local activation unit (§4.3): a(k, q) = v · act(W [k ‖ q ‖ k − q ‖ k ⊙ q] + b) + c, and the interest v_U(q) = Σ_t a(k_t, q) k_t
(eq. 3), not normalised over t, so that its size says how strong the interest is. W is split by its inputs,

    W [k ‖ q ‖ k − q ‖ k ⊙ q] = (W_1 + W_3) k + (W_2 − W_3) q + W_4 (k ⊙ q) =: A k + B q + P (k ⊙ q),

which is the same function with a third of the work: A k is part of the user state, B q is computed once per candidate.
A padded key is zero and adds nothing whatever its weight, so no mask is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.architectures.din.config import DINConfig
from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, features
from model.architectures.joined import JoinedNetwork, PReLU, Recent, recent, request_rows
from model.architectures.terms import FeatureWidths
from model.layers.tokens import event_module
from model.schema import Schema
from model.signature import REQUEST_INDEX


class HistoryKeys(nn.Module):
    """One event type's history → keys [U, T, d], zero where padded, and A k + b [U, T, h]."""

    def __init__(self, inputs: int, width: int, hidden: int) -> None:
        super().__init__()
        self.key = nn.Linear(inputs, width)
        self.hidden = nn.Linear(width, hidden)

    def forward(self, history: Recent) -> tuple[Tensor, Tensor]:
        keys = self.key(history.features) * history.mask
        return keys, self.hidden(keys)


class ActivationUnit(nn.Module):
    """Keys [R, T, d], A k + b [R, T, h] and queries [C, d] → interests [C, d]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, hidden, bias=False)
        self.product = nn.Linear(width, hidden, bias=False)
        self.activation = PReLU(hidden)
        self.weight = nn.Linear(hidden, 1)

    def forward(self, keys: Tensor, hidden: Tensor, queries: Tensor, request_index: Tensor) -> Tensor:
        if self.training:
            return self._packed(keys, hidden, queries, request_index)
        k = keys.index_select(0, request_index)  # [C, T, d]
        h = hidden.index_select(0, request_index) + self.query(queries).unsqueeze(1) + self.product(k * queries.unsqueeze(1))
        weights = self.weight(self.activation(h))  # [C, T, 1]
        return (weights.transpose(1, 2) @ k).squeeze(1)

    def _packed(self, keys: Tensor, hidden: Tensor, queries: Tensor, request_index: Tensor) -> Tensor:
        """The same over the P pairs of a candidate and a real key, instead of C · T: most of a batch's histories is padding.

        Its sizes depend on the data, so it is no form for an exported graph.
        """
        real = keys.detach().any(-1)  # [R, T]: a padded key is zero
        candidate, step = real.index_select(0, request_index).nonzero(as_tuple=True)
        row = request_index.index_select(0, candidate) * keys.shape[1] + step
        k = keys.flatten(0, 1).index_select(0, row)  # [P, d]
        h = hidden.flatten(0, 1).index_select(0, row) + self.query(queries).index_select(0, candidate)
        weights = self.weight(self.activation(h + self.product(k * queries.index_select(0, candidate))))
        return torch.zeros_like(queries).index_add(0, candidate, weights * k)


class EncodeUser(EncodeGraph):
    """User features and histories → features, keys, and the keys' part of the activation units."""

    def __init__(self, schema: Schema, config: DINConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.counts = config.counts(widths.caps)
        self.keys = nn.ModuleDict(
            {event_module(e): HistoryKeys(inputs, config.width, config.attention_hidden) for e, inputs in widths.events.items()}
        )

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        states = [features(given, "user")]
        for event, count in self.counts.items():
            states += self.keys[event_module(event)](recent(given, event, count, self.training))
        return tuple(states)


class ScoreCandidates(ScoreGraph):
    """Interests of every event type beside user, context and item features → network → logits."""

    def __init__(self, schema: Schema, config: DINConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.events = tuple(widths.events)
        self.query = nn.Linear(widths.item, config.width)
        self.units = nn.ModuleDict(
            {event_module(e): ActivationUnit(config.width, config.attention_hidden) for e in self.events}
        )
        self.network = JoinedNetwork(
            widths.user + widths.context,
            widths.item + len(self.events) * config.width,
            config.hidden,
            widths.tasks,
            config.activation,
        )

    def score(self, given: Given) -> Tensor:
        item, index = features(given, "item"), given[REQUEST_INDEX]
        queries = self.query(item)
        parts = [item]
        for event in self.events:
            keys, hidden = given[f"state_{event}_keys"], given[f"state_{event}_hidden"]
            parts.append(self.units[event_module(event)](keys, hidden, queries, index))
        return self.network(request_rows(given, given["state_user"]), torch.cat(parts, dim=1), index)
