"""Deep & Cross Network V2 (Wang et al. 2021, arXiv:2008.13535): explicit feature crosses, then or beside a network. Torch-free.

Histories enter as multi-valued features do: the mean of their events, per event type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from model.architectures.base import ArchitectureConfig
from model.architectures.joined_terms import joined_linear, joined_network
from model.architectures.terms import FeatureWidths, Terms, linear
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph

Positive = Annotated[int, Field(ge=1)]


class DCNv2Config(ArchitectureConfig):
    """`rank`: of the cross layers' matrices (§4.2's U Vᵀ; full if absent). `stacked`: the network on the crosses, or beside."""

    architecture: Literal["dcn_v2"] = "dcn_v2"
    cross_layers: Positive = 3
    rank: Positive | None = None
    hidden: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 64)
    structure: Literal["stacked", "parallel"] = "stacked"

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """`state_user`: user features and the mean event of every type."""
        return (TensorSpec("state_user", "float32", (rows, user_width(FeatureWidths.of(schema)))),)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        """Nothing is multiplied."""
        return iter(())

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        """See `ArchitectureConfig`."""
        request, candidate = user_width(widths) + widths.context, widths.item
        whole = request + candidate
        inner = self.rank or whole
        yield "crosses", joined_linear(requests, candidates, request, candidate, inner)
        yield "crosses", (self.cross_layers - 1) * linear(candidates, whole, inner)
        if self.rank is not None:
            yield "crosses", self.cross_layers * linear(candidates, self.rank, whole)
        if self.structure == "stacked":
            yield "network", joined_network(0, candidates, 0, whole, self.hidden, widths.tasks)
        else:
            yield "network", joined_network(requests, candidates, request, candidate, self.hidden, widths.tasks)
            yield "head", linear(candidates, whole, widths.tasks)

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        """See `ArchitectureConfig`."""
        from model.architectures.dcn_v2.graphs import EncodeUser, ScoreCandidates

        return EncodeUser(schema, self), ScoreCandidates(schema, self)


def user_width(widths: FeatureWidths) -> int:
    """Columns of the user state."""
    return widths.user + sum(widths.events.values())
