"""Hyper-parameters of a Kunlun model in the `user_split` wiring. Torch-free.

Names follow the paper (arXiv:2602.10016) where it has one. Layers are counted from 0: even layers
run GDPA-PFFN and HSP, odd layers run self-attention and reuse the last summary (CompSkip).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from model.architectures.base import ArchitectureConfig
from model.architectures.kunlun import flops
from model.architectures.terms import FeatureWidths, ProductWidths, Terms
from model.config import ConfigError, StrictModel
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph

Positive = Annotated[int, Field(ge=1)]


class Activation(StrEnum):
    """GDPA activations; all map 0 to 0. `fast_gelu` is the tanh form."""

    RAW = "raw"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    RELU_SQUARE = "relu_square"
    GELU = "gelu"
    FAST_GELU = "fast_gelu"
    SILU = "silu"
    HARDSWISH = "hardswish"


class ScalePreset(StrEnum):
    """Where GDPA scales its scores (three readings of the sources; see `kernels/gdpa/reference.py`)."""

    PAPER = "paper"
    KERNEL = "kernel"
    PAPER_GAIN = "paper+gain"


class TowerConfig(StrictModel):
    """One event type's tower (event-level personalization)."""

    width: Positive
    heads: Positive
    n_seeds: Positive
    n_tokens: Positive
    kronecker_rank: Positive
    window: Positive
    layers: Positive

    @model_validator(mode="after")
    def _shapes_fit(self) -> TowerConfig:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"width {self.width} must be heads ({self.heads}) times a multiple of 4: rotary pairs for position and time"
            )
        if self.n_seeds <= self.n_tokens:
            raise ValueError(f"n_seeds {self.n_seeds} must exceed n_tokens {self.n_tokens} (HSP starts overcomplete)")
        return self


class WukongConfig(StrictModel):
    """Global Interaction by Wukong experts over a partition of the tokens; `hidden` is the FM network's."""

    experts: Positive
    fm_rank: Positive
    hidden: Positive


class CandidateStreamConfig(StrictModel):
    """The per-candidate stream; one of two interactions.

    `hidden`: gated (second-order) units of that width over the flattened tokens, large products that engines run
    near their peak. `wukong`: the paper's experts over tokens, small batched products; what it costs and gives
    beside the other is in docs/benchmarking.md.
    """

    tokens: Positive
    width: Positive
    hidden: Positive | None = None
    wukong: WukongConfig | None = None
    head_hidden: Positive

    @model_validator(mode="after")
    def _one_interaction(self) -> CandidateStreamConfig:
        if (self.hidden is None) == (self.wukong is None):
            found = "neither" if self.hidden is None else "both"
            raise ValueError(f"expected hidden (gated units) or wukong (experts), found {found}")
        if self.wukong is not None and self.tokens % self.wukong.experts:
            raise ValueError(f"tokens {self.tokens} must be a multiple of wukong.experts {self.wukong.experts}")
        return self


class TargetWeights(StrEnum):
    """How target pooling turns scores into weights: `sigmoid` keeps how much was found, `softmax` only what."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class TargetPoolingConfig(StrictModel):
    """Candidates attend to the last S of every tower (`model.layers.target_pooling`): `seeds` queries of `width` each.

    Adds cap · (2 · width + 1) floats per event type to the user state.
    """

    seeds: Positive = 2
    width: Positive = 64
    weights: TargetWeights = TargetWeights.SOFTMAX


class KunlunConfig(ArchitectureConfig):
    """A whole model. `towers` names event types; `default_tower` serves those not named."""

    architecture: Literal["kunlun"] = "kunlun"
    variant: Literal["user_split"] = "user_split"
    width: Positive
    user_tokens: Positive
    n_kv: Positive
    layers: Positive
    state_tokens: Positive
    activation: Activation | tuple[Activation, ...] = Activation.FAST_GELU
    scale: ScalePreset = ScalePreset.PAPER_GAIN
    default_tower: TowerConfig
    towers: dict[str, TowerConfig] = Field(default_factory=dict)
    user_interaction: WukongConfig
    candidate: CandidateStreamConfig
    time_scale_s: Annotated[float, Field(gt=0)] = 3600.0
    target_pooling: TargetPoolingConfig | None = None

    @model_validator(mode="after")
    def _no_dead_compute(self) -> KunlunConfig:
        for name, tower in [("default_tower", self.default_tower), *((f"towers.{n}", t) for n, t in self.towers.items())]:
            if tower.layers > self.layers:
                raise ValueError(f"{name}: layers {tower.layers} exceeds the model's {self.layers}")
            if tower.layers % 2 == 0:
                raise ValueError(
                    f"{name}: layers {tower.layers} is even, so the output of its last self-attention would never be read; "
                    f"use {tower.layers - 1} or {tower.layers + 1}"
                )
            if isinstance(self.activation, tuple) and len(self.activation) != tower.heads:
                raise ValueError(f"activation: {len(self.activation)} given, {name} has {tower.heads} heads")
        if self.user_tokens % self.user_interaction.experts:
            raise ValueError(
                f"user_tokens {self.user_tokens} must be a multiple of user_interaction.experts {self.user_interaction.experts}"
            )
        return self

    def tower(self, event: str) -> TowerConfig:
        """The tower of an event type."""
        return self.towers.get(event, self.default_tower)

    def check_schema(self, schema: Schema) -> None:
        declared = [e.name for e in schema.events]
        for event in self.towers:
            if event not in declared:
                raise ConfigError(f"towers: {event!r} is not an event type of the schema; there are: {', '.join(declared)}")

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """R_0 … R_{L-1}, each [rows, state_tokens, candidate width]; with target pooling also its memory per event type."""
        shape = (rows, self.state_tokens, self.candidate.width)
        specs = [TensorSpec(name, "float32", shape) for name in self.layer_states]
        if self.target_pooling is not None:
            for event in schema.events:
                sizes = (event.cap, self.target_pooling.width), (event.cap, self.target_pooling.width), (event.cap,)
                specs += [TensorSpec(n, "float32", (rows, *s)) for n, s in zip(memory_states(event.name), sizes, strict=True)]
        return tuple(specs)

    @property
    def layer_states(self) -> tuple[str, ...]:
        """Names of R_0 … R_{L-1}."""
        return tuple(f"state_{layer}" for layer in range(self.layers))

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        return flops.encode_terms(self, widths, lengths, executed)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        return flops.score_terms(self, widths, requests, candidates, executed, lengths)

    def constant_terms(self, widths: FeatureWidths) -> Terms:
        return flops.seed_queries(self, widths)

    def product_widths(self, widths: FeatureWidths) -> ProductWidths:
        towers, mix = [self.tower(event) for event in widths.caps], self.user_interaction
        streams = (self.width, self.candidate.width, *(tower.width for tower in towers))
        seen_by_expert = self.user_tokens // mix.experts + sum(tower.n_tokens for tower in towers)
        if self.target_pooling is not None:
            streams = (*streams, self.target_pooling.width, *widths.caps.values())
        inner = (*streams, seen_by_expert * mix.fm_rank, mix.hidden, self.state_tokens * self.candidate.width)
        return ProductWidths(streams, inner)

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        from model.architectures.kunlun.graphs import KunlunEncode, KunlunScore

        return KunlunEncode(schema, self), KunlunScore(schema, self)


def memory_states(event: str) -> tuple[str, str, str]:
    """State tensors of target pooling: keys, values and bias of one event type."""
    return f"target_keys_{event}", f"target_values_{event}", f"target_bias_{event}"
