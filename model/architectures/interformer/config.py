"""InterFormer (Zeng et al. 2024, arXiv:2411.09852): set features and sequences refine each other layer by layer. Torch-free.

The candidate is among the set features that generate the sequences' weights, so nothing of the sequences can be shared by the
candidates of a request: the user state is the input tokens, and every candidate pays for the whole network.
Each event type is a sequence of its own; their summaries are concatenated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from model.architectures.base import ArchitectureConfig
from model.architectures.joined_terms import joined_linear
from model.architectures.kunlun.flops import wukong
from model.architectures.kunlun.options import WukongConfig
from model.architectures.recent import RecentEvents
from model.architectures.terms import FeatureWidths, Terms, linear, row_linear
from model.config import ConfigError
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph

Positive = Annotated[int, Field(ge=1)]


class InterFormerConfig(ArchitectureConfig, RecentEvents):
    """`cls_tokens`, `pooled_tokens`, `recent_tokens`: the summary of a sequence (4, 2 and 2 in the paper's public runs).

    `fm_rank` and `hidden` are those of the interaction, one Wukong expert per layer (the paper leaves the kind open).
    """

    architecture: Literal["interformer"] = "interformer"
    width: Positive = 32
    heads: Positive = 2
    layers: Positive = 2
    user_tokens: Positive = 4
    candidate_tokens: Positive = 4
    cls_tokens: Positive = 4
    pooled_tokens: Positive = 2
    recent_tokens: Positive = 2
    fm_rank: Positive = 8
    hidden: Positive = 64
    head_hidden: Positive = 64
    recent_events: Annotated[int, Field(ge=1)] | None = 50

    @model_validator(mode="after")
    def _shapes_fit(self) -> InterFormerConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice heads ({self.heads}): rotary pairs")
        if self.recent_events is not None and self.recent_events < self.recent_tokens:
            raise ValueError(f"recent_events {self.recent_events} must be at least recent_tokens {self.recent_tokens}")
        return self

    def check_schema(self, schema: Schema) -> None:
        """Every history can hold the newest tokens that its summary takes."""
        for event in schema.events:
            if event.cap < self.recent_tokens:
                raise ConfigError(
                    f"events.{event.name}: expected a cap of at least recent_tokens {self.recent_tokens}, found {event.cap}"
                )

    @property
    def set_tokens(self) -> int:
        """n: tokens of user and candidate."""
        return self.user_tokens + self.candidate_tokens

    @property
    def summary_tokens(self) -> int:
        """Tokens of one sequence's summary."""
        return self.cls_tokens + self.pooled_tokens + self.recent_tokens

    @property
    def interaction(self) -> WukongConfig:
        """The interaction as one Wukong expert."""
        return WukongConfig(experts=1, fm_rank=self.fm_rank, hidden=self.hidden)

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """User tokens; per event type its tokens and which of them are real (1.0)."""
        specs = [TensorSpec("state_user", "float32", (rows, self.user_tokens, self.width))]
        for event, count in self.counts({e.name: e.cap for e in schema.events}).items():
            specs.append(TensorSpec(f"state_{event}_tokens", "float32", (rows, count, self.width)))
            specs.append(TensorSpec(f"state_{event}_mask", "float32", (rows, count)))
        return tuple(specs)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        """See `ArchitectureConfig`."""
        yield "user_tokens", row_linear(1, widths.user, self.user_tokens * self.width, executed)
        for event, steps in self.steps(widths.caps, lengths, executed).items():
            yield "history_tokens", linear(steps, widths.events[event], self.width) + linear(steps, self.width, self.width)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        """See `ArchitectureConfig`."""
        d, towers = self.width, len(widths.events)
        yield "candidate_tokens", joined_linear(requests, candidates, widths.context, widths.item, self.candidate_tokens * d)
        for steps in self.steps(widths.caps, lengths, executed).values():
            yield from self._tower_terms(candidates, self.cls_tokens + steps)
        summarised = 2.0 * self.cls_tokens * self.set_tokens * d + 2 * linear(self.cls_tokens, d, d)
        yield "set_summary", candidates * (self.layers + 1) * summarised
        mixed = wukong(self.interaction, self.set_tokens, d, towers * self.summary_tokens)
        yield "interaction", candidates * self.layers * mixed
        flat = (self.cls_tokens + towers * self.summary_tokens) * d
        yield "head", linear(candidates, flat, self.head_hidden) + linear(candidates, self.head_hidden, widths.tasks)

    def _tower_terms(self, candidates: int, steps: int) -> Terms:
        """One sequence of `steps` tokens, its CLS tokens among them."""
        d, each = self.width, candidates * self.layers
        yield "generated_weights", each * linear(1, self.cls_tokens * d, d * d)
        yield "pffn", each * linear(steps, d, d)
        yield "self_attention", each * (4 * linear(steps, d, d) + 4.0 * d * steps * steps)
        pooled = 2 * linear(steps, d, d) + 4.0 * d * self.pooled_tokens * steps + linear(self.pooled_tokens, d, d)
        yield "sequence_summary", candidates * (self.layers + 1) * (pooled + 2 * linear(self.summary_tokens, d, d))

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        """See `ArchitectureConfig`."""
        from model.architectures.interformer.graphs import EncodeUser, ScoreCandidates

        return EncodeUser(schema, self), ScoreCandidates(schema, self)
