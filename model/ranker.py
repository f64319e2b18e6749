"""The Kunlun ranker in the `user_split` wiring: the torch twin of everything that is served.

`EncodeUser` and `ScoreCandidates` are the two graphs, with inputs named and ordered as in
`model.signature`; they take embedding *rows* and hold no tables. `KunlunRanker` adds the embedding
tables for training. Calibration is part of `ScoreCandidates`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.artifact import Calibration
from model.config import ConfigError
from model.features import FeatureLayout
from model.layers.candidate_stream import CandidateStream
from model.layers.embedding import EmbeddingTables
from model.layers.user_stream import HistoryInput, TowerInput, UserStream
from model.model_config import ModelConfig
from model.schema import Schema
from model.signature import (
    LOGITS,
    PROBABILITIES,
    REQUEST_INDEX,
    encode_user_signature,
    score_candidates_signature,
    state_names,
)


class EncodeUser(nn.Module):
    """Graph 1: tensors of `encode_user_signature` → the user state."""

    def __init__(self, schema: Schema, config: ModelConfig) -> None:
        super().__init__()
        layout = FeatureLayout(schema)
        self.signature = encode_user_signature(schema, config)
        self.events = tuple(e.name for e in schema.events)
        towers = {
            e.name: TowerInput(layout.events[e.name].embedded_width + len(layout.events[e.name].dense), e.cap)
            for e in schema.events
        }
        self.stream = UserStream(config, layout.user.embedded_width + len(layout.user.dense), towers)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip((spec.name for spec in self.signature.inputs), tensors, strict=True))
        histories = {
            e: HistoryInput(_beside(given, f"{e}_rows", f"{e}_dense"), given[f"{e}_age"], given[f"{e}_length"])
            for e in self.events
        }
        return tuple(self.stream(_beside(given, "user_rows", "user_dense"), histories))


class ScoreCandidates(nn.Module):
    """Graph 2: tensors of `score_candidates_signature` → (logits, probabilities), both calibrated, [C, tasks]."""

    def __init__(self, schema: Schema, config: ModelConfig) -> None:
        super().__init__()
        layout = FeatureLayout(schema)
        self.signature = score_candidates_signature(schema, config)
        self.states = state_names(config)
        self.stream = CandidateStream(
            config,
            layout.item.embedded_width + len(layout.item.dense),
            layout.context.embedded_width + len(layout.context.dense),
            len(schema.tasks),
        )
        self.calibration_scale: Tensor
        self.calibration_shift: Tensor
        self.register_buffer("calibration_scale", torch.ones(len(schema.tasks)))
        self.register_buffer("calibration_shift", torch.zeros(len(schema.tasks)))

    def calibrate(self, calibrations: list[Calibration]) -> None:
        """Set the served calibration, one per task: Platt, then the offset ln(negative_rate) of down-sampling."""
        self.calibration_scale.copy_(torch.tensor([c.scale for c in calibrations]))
        offsets = torch.tensor([c.negative_rate for c in calibrations]).log()
        self.calibration_shift.copy_(torch.tensor([c.shift for c in calibrations]) + offsets)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.calibrated(self.raw_logits(*tensors))
        return logits, logits.sigmoid()

    def calibrated(self, raw: Tensor) -> Tensor:
        """Logits [C, tasks] as they are served, from raw ones."""
        return raw * self.calibration_scale + self.calibration_shift

    def raw_logits(self, *tensors: Tensor) -> Tensor:
        """Logits before calibration, [C, tasks]."""
        given = dict(zip((spec.name for spec in self.signature.inputs), tensors, strict=True))
        context = (
            _beside(given, "context_rows", "context_dense") if "context_rows" in given or "context_dense" in given else None
        )
        item = _beside(given, "item_rows", "item_dense")
        return self.stream(item, context, [given[name] for name in self.states], given[REQUEST_INDEX])


class KunlunRanker(nn.Module):
    """Both graphs and the embedding tables."""

    def __init__(self, schema: Schema, config: ModelConfig, table_rows: Mapping[str, int]) -> None:
        super().__init__()
        declared = [e.name for e in schema.events]
        for event in config.towers:
            if event not in declared:
                raise ConfigError(f"towers: {event!r} is not an event type of the schema; there are: {', '.join(declared)}")
        self.schema, self.config = schema, config
        self.layout = FeatureLayout(schema)
        self.tables = EmbeddingTables(table_rows, self.layout.table_widths())
        self.encode_user = EncodeUser(schema, config)
        self.score_candidates = ScoreCandidates(schema, config)


def _beside(given: Mapping[str, Tensor], *names: str) -> Tensor:
    """Those of the named tensors that exist, side by side on the last axis."""
    parts = [given[name] for name in names if name in given]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


__all__ = ["LOGITS", "PROBABILITIES", "EncodeUser", "KunlunRanker", "ScoreCandidates"]
