"""Deep Interest Network (Zhou et al. 2018, arXiv:1706.06978): histories pooled by attention to the candidate. Torch-free.

Each event type has its own local activation unit (§4.3) and is pooled on its own. History events and candidates carry
different features here, so both are first mapped to keys and queries of one width; the paper's are alike as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from model.architectures.base import ArchitectureConfig
from model.architectures.joined_terms import joined_network
from model.architectures.recent import RecentEvents
from model.architectures.terms import FeatureWidths, Terms, linear
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph

Positive = Annotated[int, Field(ge=1)]


class DINConfig(ArchitectureConfig, RecentEvents):
    """`width` of keys and queries, hidden units of the activation unit, hidden layers of the network, and its activation."""

    architecture: Literal["din"] = "din"
    width: Positive = 32
    attention_hidden: Positive = 36
    hidden: Annotated[tuple[Positive, ...], Field(min_length=1)] = (200, 80)
    activation: Literal["prelu", "dice", "relu"] = "prelu"

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """User features, and per event type its keys and their part of the activation unit, of a fixed number of events."""
        widths = FeatureWidths.of(schema)
        counts = self.counts(widths.caps)
        specs = [TensorSpec("state_user", "float32", (rows, widths.user))]
        for event in schema.events:
            specs += [
                TensorSpec(f"state_{event.name}_keys", "float32", (rows, counts[event.name], self.width)),
                TensorSpec(f"state_{event.name}_hidden", "float32", (rows, counts[event.name], self.attention_hidden)),
            ]
        return tuple(specs)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        """See `ArchitectureConfig`."""
        for event, steps in self.steps(widths.caps, lengths, executed).items():
            yield "keys", linear(steps, widths.events[event], self.width)
            yield "activation_unit", linear(steps, self.width, self.attention_hidden)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        """See `ArchitectureConfig`."""
        yield "queries", linear(candidates, widths.item, self.width)
        for each in self.steps(widths.caps, lengths, executed).values():
            steps = candidates * each
            yield "activation_unit", linear(candidates, self.width, self.attention_hidden)
            yield "activation_unit", linear(steps, self.width, self.attention_hidden) + linear(steps, self.attention_hidden, 1)
            yield "pooling", linear(steps, self.width, 1)
        request, candidate = widths.user + widths.context, widths.item + len(widths.caps) * self.width
        yield "network", joined_network(requests, candidates, request, candidate, self.hidden, widths.tasks)

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        """See `ArchitectureConfig`."""
        from model.architectures.din.graphs import EncodeUser, ScoreCandidates

        return EncodeUser(schema, self), ScoreCandidates(schema, self)
