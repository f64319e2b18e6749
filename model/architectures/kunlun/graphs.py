"""The two graphs of Kunlun in the `user_split` wiring."""

from __future__ import annotations

from torch import Tensor

from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, beside, features
from model.architectures.kunlun.config import KunlunConfig
from model.architectures.terms import FeatureWidths
from model.layers.candidate_stream import CandidateStream
from model.layers.user_stream import HistoryInput, TowerInput, UserStream
from model.schema import Schema
from model.signature import REQUEST_INDEX


class KunlunEncode(EncodeGraph):
    """The user stream → R_0 … R_{L-1}."""

    def __init__(self, schema: Schema, config: KunlunConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        towers = {event: TowerInput(widths.events[event], cap) for event, cap in widths.caps.items()}
        self.events = tuple(towers)
        self.stream = UserStream(config, widths.user, towers)

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        histories = {e: HistoryInput(features(given, e), given[f"{e}_age"], given[f"{e}_length"]) for e in self.events}
        return tuple(self.stream(features(given, "user"), histories))


class KunlunScore(ScoreGraph):
    """The candidate stream over gathered states."""

    def __init__(self, schema: Schema, config: KunlunConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.states = config.layer_states
        self.stream = CandidateStream(config, widths.item, widths.context, widths.tasks)

    def score(self, given: Given) -> Tensor:
        states = [given[name] for name in self.states]
        return self.stream(features(given, "item"), beside(given, "context"), states, given[REQUEST_INDEX])
