"""The two graphs of Kunlun in the `user_split` wiring."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, beside, features
from model.architectures.kunlun.config import KunlunConfig, memory_states
from model.architectures.terms import FeatureWidths
from model.layers.candidate_stream import CandidateStream
from model.layers.jagged import JaggedHistory
from model.layers.kunlun_layer import HistoryInput
from model.layers.target_pooling import TargetKeys, TargetMemory
from model.layers.tokens import event_module
from model.layers.user_stream import UserStream
from model.schema import Schema
from model.signature import REQUEST_INDEX


class KunlunEncode(EncodeGraph):
    """The user stream → R_0 … R_{L-1}."""

    def __init__(self, schema: Schema, config: KunlunConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.caps = dict(widths.caps)
        self.stream = UserStream(config, widths)
        self.target_keys = nn.ModuleDict()
        if config.target_pooling is not None:
            for event, cap in widths.caps.items():
                self.target_keys[event_module(event)] = TargetKeys(
                    config.tower(event).width, config.target_pooling.width, cap, config.time_scale_s
                )

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        histories = histories_of(given, self.caps)
        states, last = self.stream(features(given, "user"), histories)
        if self.target_keys:
            for event, history in histories.items():
                states += self.target_keys[event_module(event)](last[event], history.age_s, history.lengths)
        return tuple(states)

    def encode_jagged(self, given: Given) -> tuple[Tensor, ...]:
        histories = {
            event: JaggedHistory(features(given, event), given[f"{event}_age"], given[f"{event}_offsets"], cap)
            for event, cap in self.caps.items()
        }
        states, last = self.stream.jagged(features(given, "user"), histories)
        for event, history in histories.items():
            keys = self.target_keys[event_module(event)] if self.target_keys else None
            if isinstance(keys, TargetKeys):
                states += keys.jagged(last[event], history)
        return tuple(states)


class KunlunScore(ScoreGraph):
    """The candidate stream over gathered states."""

    def __init__(self, schema: Schema, config: KunlunConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        self.states = config.layer_states
        self.memories = [memory_states(event) for event in widths.caps] if config.target_pooling is not None else []
        self.stream = CandidateStream(config, widths.item, widths.context, widths.tasks, list(widths.caps.values()))

    def score(self, given: Given) -> Tensor:
        states = [given[name] for name in self.states]
        memories = [TargetMemory(*(given[name] for name in names)) for names in self.memories]
        return self.stream(features(given, "item"), beside(given, "context"), states, given[REQUEST_INDEX], memories)


def histories_of(given: Given, events: Iterable[str]) -> dict[str, HistoryInput]:
    """The padded histories among the inputs of `encode_user`."""
    return {e: HistoryInput(features(given, e), given[f"{e}_age"], given[f"{e}_length"]) for e in events}
