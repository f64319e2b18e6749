"""The Kunlun stack, which both wirings share: set tokens X, sequences S, summaries H, layer by layer. Torch-free.

Layers are counted from 0. With CompSkip even layers are *global* (Weight Generation, PFFN, pooling) and odd ones run
self-attention and reuse the last summary; without it every layer is global and attends. What a layer does not run does not
exist in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.architectures.base import ArchitectureConfig
from model.architectures.kunlun.options import (
    Activation,
    EventTokens,
    NormPlacement,
    Pffn,
    Positive,
    ScalePreset,
    TimeEncoding,
    TowerConfig,
    WukongConfig,
)
from model.config import ConfigError
from model.schema import Schema


class StackConfig(ArchitectureConfig):
    """Hyper-parameters of the stack. `towers` names event types; `default_tower` serves those not named.

    `user_interaction`: the experts of Global Interaction. `share_towers`: one tower's parameters serve all event types.
    `place_embedding`: history tokens carry a learned vector of their place counted from the newest event.
    """

    architecture: Literal["kunlun"] = "kunlun"
    width: Positive
    user_tokens: Positive
    n_kv: Positive
    layers: Positive
    activation: Activation | tuple[Activation, ...] = Activation.FAST_GELU
    scale: ScalePreset = ScalePreset.PAPER_GAIN
    default_tower: TowerConfig
    towers: dict[str, TowerConfig] = Field(default_factory=dict)
    user_interaction: WukongConfig
    time_scale_s: Annotated[float, Field(gt=0)] = 3600.0
    comp_skip: bool = True
    share_towers: bool = False
    pffn: Pffn = Pffn.GDPA
    attention_norm: NormPlacement = NormPlacement.PRE
    time_encoding: TimeEncoding = TimeEncoding.AGE
    event_tokens: EventTokens = EventTokens.MLP
    place_embedding: bool = False

    @model_validator(mode="after")
    def _no_dead_compute(self) -> StackConfig:
        for name, tower in [("default_tower", self.default_tower), *((f"towers.{n}", t) for n, t in self.towers.items())]:
            if tower.layers > self.layers:
                raise ValueError(f"{name}: layers {tower.layers} exceeds the model's {self.layers}")
            if self.comp_skip and tower.layers % 2 == 0 and not self.reads_last_sequence:
                raise ValueError(
                    f"{name}: layers {tower.layers} is even, so the output of its last self-attention would never be read; "
                    f"use {tower.layers - 1} or {tower.layers + 1}"
                )
            if isinstance(self.activation, tuple) and len(self.activation) != tower.heads:
                raise ValueError(f"activation: {len(self.activation)} given, {name} has {tower.heads} heads")
        if self.share_towers and self.towers:
            raise ValueError("towers: share_towers has one tower for all event types; leave one of the two out")
        if self.interacting_tokens % self.user_interaction.experts:
            raise ValueError(
                f"{self.token_fields} {self.interacting_tokens} must be a multiple of "
                f"user_interaction.experts {self.user_interaction.experts}"
            )
        return self

    @property
    def token_fields(self) -> str:
        """The fields that add up to `interacting_tokens`, as errors name them."""
        return "user_tokens"

    @property
    def interacting_tokens(self) -> int:
        """Set tokens X of every layer."""
        return self.user_tokens

    @property
    def reads_last_sequence(self) -> bool:
        """Whether something reads S after the last layer."""
        return False

    def tower(self, event: str) -> TowerConfig:
        """The tower of an event type."""
        return self.towers.get(event, self.default_tower)

    def parameters_of(self, event: str) -> str:
        """Name under which a tower keeps its parameters."""
        return "shared" if self.share_towers else event

    def caps(self, caps: Mapping[str, int]) -> dict[str, int]:
        """The cap that a tower is built for, per event type: its own, or that of the longest histories when it is shared."""
        return dict.fromkeys(caps, max(caps.values())) if self.share_towers else dict(caps)

    def is_global(self, layer: int) -> bool:
        """Whether a layer generates weights, runs the PFFN and pools."""
        return not self.comp_skip or layer % 2 == 0

    def attends(self, event: str, layer: int) -> bool:
        """Whether a tower runs self-attention in a layer: never where nothing would read it."""
        last = self.tower(event).layers - 1
        if self.comp_skip:
            return layer % 2 == 1 and layer <= last
        return layer < last or (layer == last and self.reads_last_sequence)

    def summary_tokens(self, events: Mapping[str, object]) -> int:
        """Summary tokens H of all towers."""
        return sum(self.tower(event).summary_tokens for event in events)

    def check_schema(self, schema: Schema) -> None:
        caps = {e.name: e.cap for e in schema.events}
        for event in self.towers:
            if event not in caps:
                raise ConfigError(f"towers: {event!r} is not an event type of the schema; there are: {', '.join(caps)}")
        for event, cap in caps.items():
            if (recent := self.tower(event).n_recent) > cap:
                raise ConfigError(f"n_recent: {recent} exceeds the cap {cap} of event type {event!r}")
