"""HSTU (Zhai et al. 2024, arXiv:2402.17152): pointwise attention over one sequence, the candidate its last token. Torch-free.

All event types form one sequence, in the order of time, after a token of user features. Attention is causal, so no history
token knows the candidate: keys and values of every layer are the user state, computed once (the paper's M-FALCON),
and a candidate attends to them and to itself. Since the two graphs hold no weights in common, the candidate's projections
are its own, where the paper's are those of the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from model.architectures.base import ArchitectureConfig
from model.architectures.recent import RecentEvents
from model.architectures.terms import FeatureWidths, Terms, linear
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph

Positive = Annotated[int, Field(ge=1)]


class HSTUConfig(ArchitectureConfig, RecentEvents):
    """`width` of tokens (heads times a head's), layers, and hidden units of the head on the candidate's last token."""

    architecture: Literal["hstu"] = "hstu"
    width: Positive = 32
    heads: Positive = 2
    layers: Positive = 2
    head_hidden: Positive = 64

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> HSTUConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """Per layer keys and values [rows, tokens, width] and what the time since each token adds to its scores."""
        tokens = 1 + sum(self.counts({e.name: e.cap for e in schema.events}).values())
        specs = []
        for layer in range(self.layers):
            specs += [
                TensorSpec(f"state_{layer}_keys", "float32", (rows, tokens, self.width)),
                TensorSpec(f"state_{layer}_values", "float32", (rows, tokens, self.width)),
                TensorSpec(f"state_{layer}_bias", "float32", (rows, tokens)),
            ]
        return tuple(specs)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        """See `ArchitectureConfig`."""
        d, steps = self.width, self.steps(widths.caps, lengths, executed)
        yield "tokens", linear(1, widths.user, d)
        for event, count in steps.items():
            yield "tokens", linear(count, widths.events[event], d)
        tokens = 1 + sum(steps.values())
        pairs = tokens * tokens if executed else tokens * (tokens + 1) / 2
        yield "projections", (self.layers - 1) * (linear(tokens, d, 4 * d) + linear(tokens, d, d))
        yield "attention", (self.layers - 1) * 4.0 * d * pairs
        yield "projections", linear(tokens, d, 2 * d)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        """See `ArchitectureConfig`."""
        d, tokens = self.width, 1 + sum(self.steps(widths.caps, lengths, executed).values())
        yield "tokens", linear(requests, widths.context, d) + linear(candidates, widths.item, d)
        yield "projections", self.layers * (linear(candidates, d, 4 * d) + linear(candidates, d, d))
        yield "attention", self.layers * candidates * 4.0 * d * tokens
        yield "head", linear(candidates, d, self.head_hidden) + linear(candidates, self.head_hidden, widths.tasks)

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        """See `ArchitectureConfig`."""
        from model.architectures.hstu.graphs import EncodeUser, ScoreCandidates

        return EncodeUser(schema, self), ScoreCandidates(schema, self)
