"""Wukong (Zhang et al. 2024, arXiv:2403.02545) without sequences: stacked factorization machines over tokens. Torch-free.

It reads user (history lengths among them), context and item features and no histories: what histories add to the
interaction that Kunlun shares with it. The interaction is one expert over all tokens, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from model.architectures.base import ArchitectureConfig
from model.architectures.joined_terms import joined_linear
from model.architectures.kunlun.flops import wukong
from model.architectures.kunlun.options import WukongConfig
from model.architectures.terms import FeatureWidths, Terms, linear, row_linear
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph

Positive = Annotated[int, Field(ge=1)]


class WukongRankerConfig(ArchitectureConfig):
    """Tokens of the user and of the candidate (with its context), their width, layers, FM rank and network, and the head."""

    architecture: Literal["wukong"] = "wukong"
    width: Positive = 32
    user_tokens: Positive = 4
    candidate_tokens: Positive = 8
    layers: Positive = 3
    fm_rank: Positive = 8
    hidden: Positive = 128
    head_hidden: Positive = 64

    @property
    def interaction(self) -> WukongConfig:
        """One layer as one expert over all tokens."""
        return WukongConfig(experts=1, fm_rank=self.fm_rank, hidden=self.hidden)

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """`state_tokens` [rows, user_tokens, width]."""
        return (TensorSpec("state_tokens", "float32", (rows, self.user_tokens, self.width)),)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        """See `ArchitectureConfig`."""
        yield "user_tokens", row_linear(1, widths.user, self.user_tokens * self.width, executed)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        """See `ArchitectureConfig`."""
        tokens, flat = self.user_tokens + self.candidate_tokens, self.candidate_tokens * self.width
        yield "candidate_tokens", joined_linear(requests, candidates, widths.context, widths.item, flat)
        yield "interaction", self.layers * candidates * wukong(self.interaction, tokens, self.width, 0)
        yield "head", linear(candidates, tokens * self.width, self.head_hidden)
        yield "head", linear(candidates, self.head_hidden, widths.tasks)

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        """See `ArchitectureConfig`."""
        from model.architectures.wukong.graphs import EncodeUser, ScoreCandidates

        return EncodeUser(schema, self), ScoreCandidates(schema, self)
