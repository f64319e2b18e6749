"""The two graphs of Kunlun in the `exact` wiring: the paper's model, with what can be shared between candidates shared.

Embedding gathers, user tokens, the network of history tokens and q̂ of layer 0 are made once per user; everything after the
first generated weights is the candidate's own, so `score_candidates` runs the whole stack with one row per candidate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, beside, features
from model.architectures.kunlun.config import ExactConfig, history_states
from model.architectures.kunlun.graphs import histories_of
from model.architectures.terms import FeatureWidths
from model.layers.dropout import HiddenDropout
from model.layers.kunlun_layer import KunlunLayer, Sequence
from model.layers.served_form import padded_to_cap
from model.layers.tokens import FlatTokens, event_module, row_invariant_linear
from model.layers.user_stream import history_tokens
from model.schema import Schema
from model.signature import REQUEST_INDEX


class ExactEncode(EncodeGraph):
    """User features and histories → user tokens; S_0, q̂, ages and length per event type."""

    def __init__(self, schema: Schema, config: ExactConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.caps = dict(widths.caps)
        self.user_tokens = FlatTokens(widths.user, config.user_tokens, config.width)
        self.history_tokens = history_tokens(config, widths)

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        state = [self.user_tokens(features(given, "user"))]
        for event, history in histories_of(given, self.caps).items():
            s = self.history_tokens[event_module(event)](history.features, history.lengths)
            normed = F.layer_norm(s, s.shape[-1:], eps=1e-5)
            parts = (s, normed, history.age_s)
            lengths = history.lengths.clamp(max=self.caps[event])  # a graph cannot return an input by another name
            state += [*(padded_to_cap(part, self.caps[event]) for part in parts), lengths]
        return tuple(state)


class ExactScore(ScoreGraph):
    """Candidates with what their users share → logits."""

    def __init__(self, schema: Schema, config: ExactConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.states = {event: history_states(event) for event in widths.caps}
        flat, n = config.candidate_tokens * config.width, config.interacting_tokens
        self.candidate_tokens = config.candidate_tokens
        self.from_item = nn.Linear(widths.item, flat)
        self.from_context = nn.Linear(widths.context, flat, bias=False) if widths.context else None
        self.layers = nn.ModuleList(KunlunLayer(config, widths.caps, layer) for layer in range(config.layers))
        self.compress = nn.Parameter(torch.randn(config.head.tokens, n) / math.sqrt(n))
        self.head = nn.Linear(config.head.tokens * config.width, config.head.hidden)
        self.logits = nn.Linear(config.head.hidden, widths.tasks)
        self.dropout = HiddenDropout()

    def score(self, given: Given) -> Tensor:
        x, _, _ = self.run(given)
        flat = (self.compress @ x).flatten(1)
        return self.logits(self.dropout(F.silu(self.head(F.layer_norm(flat, flat.shape[-1:])))))

    def run(self, given: Given, layers: int | None = None) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """X [C, n, d], S and H per event type after the first `layers` layers (None: all)."""
        index = given[REQUEST_INDEX]
        x = torch.cat([given["user_tokens"].index_select(0, index), self._candidates(given, index)], dim=1)
        s, sequences = {}, {}
        for event, names in self.states.items():
            s[event], normed, age, lengths = (given[name].index_select(0, index) for name in names)
            sequences[event] = Sequence(age, lengths, normed)
        h: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers[:layers]):
            assert isinstance(layer, KunlunLayer)
            known = sequences if number == 0 else {e: Sequence(q.age_s, q.lengths) for e, q in sequences.items()}
            x, s, h, _ = layer.advance(x, s, h, known)
        return x, s, h

    def _candidates(self, given: Given, index: Tensor) -> Tensor:
        """Candidate tokens [C, n_c, d]: item and context, layer-normed."""
        flat = self.from_item(features(given, "item"))
        context = beside(given, "context")
        if self.from_context is not None and context is not None:
            flat = flat + row_invariant_linear(self.from_context, context).index_select(0, index)
        tokens = flat.unflatten(1, (self.candidate_tokens, -1))
        return F.layer_norm(tokens, tokens.shape[-1:])
