"""Warm start: a run begins with what an earlier run has learned instead of at random.

Called by `kunlun train` for `warm_start: <run directory>`. Parameters are those of the earlier run's best step, by name.
Embedding rows follow their ids: a known id keeps its row, a new one begins where the earlier model had it (row 0, unknown),
and ids that the new log lacks stay known while the vocabulary has room. Numbers are normalised and cut as before, so
the parameters keep their meaning. Calibration and the optimizers' state are not taken over: they are fitted anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import ConfigError
from model.features import FeatureEncoder, FeatureStats
from model.ranker import KunlunRanker
from model.schema import Feature, HashBuckets, Schema
from model.training.run import BEST, TrainingRun

Keys = NDArray[np.int64]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class WarmStart:
    """What an earlier run has to give to one on `schema`."""

    source: TrainingRun
    schema: Schema

    @classmethod
    def open(cls, path: Path, schema: Schema) -> WarmStart:
        """Open the earlier run; raises `ConfigError` when there is none, or when its numbers mean something else."""
        source = TrainingRun.open(path)
        if source.schema.hash != schema.hash:
            raise _unfit(path, "hash of ids", str(schema.hash), str(source.schema.hash))
        before = dict(_declared(source.schema))
        for name, feature in _declared(schema):
            wanted, found = feature.buckets, before[name].buckets if name in before else None
            if wanted is not None and found is not None and wanted.boundaries != found.boundaries:
                raise _unfit(path, f"boundaries of {name}", str(list(wanted.boundaries)), str(list(found.boundaries)))
        return cls(source, schema)

    def stats(self, fitted: FeatureStats) -> FeatureStats:
        """Statistics for the new run: the earlier ones where there are any, and the vocabularies of both."""
        before = self.source.encoder.stats
        return FeatureStats(
            {name: before.moments.get(name, own) for name, own in fitted.moments.items()},
            {name: before.boundaries.get(name, own) for name, own in fitted.boundaries.items()},
            {name: self._vocabulary(name, own, before.vocabularies.get(name)) for name, own in fitted.vocabularies.items()},
            fitted.rates,
        )

    def _vocabulary(self, table: str, own: Keys, before: Keys | None) -> Keys:
        encoding = self.schema.tables[table].encoding
        if before is None or isinstance(encoding, HashBuckets):
            return own
        return np.union1d(own, np.setdiff1d(before, own)[: max(0, encoding.max_size - len(own))])

    def fill(self, model: KunlunRanker, position_bias: nn.Module, encoder: FeatureEncoder) -> None:
        """Copy every parameter; raises `ConfigError` naming the first that does not fit."""
        _, groups = self.source.load(BEST)
        before, by_id = self.source.encoder, {}
        for table, keys in encoder.stats.vocabularies.items():
            if table not in before.stats.vocabularies:
                raise _unfit(self.source.path, f"table {table}", "a vocabulary", "none")
            rows = np.concatenate([[0], before.lookup(table, keys)]).astype(np.int64)
            by_id[id(model.tables.weight(table))] = torch.from_numpy(rows)
        for module, found in ((model, groups["model"]), (position_bias, groups["position"])):
            own = dict(module.named_parameters())
            for name, parameter in own.items():
                self._copy(name, parameter, found, by_id.get(id(parameter)))
            buffers = {name for name, _ in module.named_buffers()}
            if unknown := sorted(found.keys() - own.keys() - buffers):
                raise _unfit(self.source.path, unknown[0], "no such parameter", f"one of shape {list(found[unknown[0]].shape)}")

    @torch.no_grad()
    def _copy(self, name: str, parameter: Tensor, found: Tensors, rows: Tensor | None) -> None:
        """Copy a parameter, of an embedding table with a vocabulary the `rows` of its ids."""
        if name not in found:
            raise _unfit(self.source.path, name, f"a parameter of shape {list(parameter.shape)}", "none")
        shape = list(found[name].shape)
        tensor = found[name] if rows is None else found[name][rows]
        if tensor.shape != parameter.shape:
            raise _unfit(self.source.path, name, f"shape {list(parameter.shape)}", f"shape {shape}")
        parameter.copy_(tensor)


def _declared(schema: Schema) -> Iterator[tuple[str, Feature]]:
    """Every feature of a schema by group."""
    groups = [("user", schema.user), ("context", schema.context), ("item", schema.item_features)]
    for group, features in [*groups, *((event.name, event.attributes) for event in schema.events)]:
        for feature in features:
            yield f"{group}.{feature.name}", feature


def _unfit(path: Path, what: str, expected: str, found: str) -> ConfigError:
    return ConfigError(f"warm_start: {path}: {what}: expected {expected}, found {found}; train from the start instead")
