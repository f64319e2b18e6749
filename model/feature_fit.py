"""Fits `FeatureStats` on training records, in one go or block by block, so that the records need not be in memory at once.

Counts of vocabularies and moments are those of all records, whatever the blocks (moments up to rounding). Quantiles are exact
for up to `QUANTILE_VALUES` values of a feature, and beyond that those of an even sample of at least half as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.affinity import RateTable
from model.features import CONTEXT, ITEMS, USER, FeatureStats, derived_feature
from model.hashing import MISSING_KEY
from model.records import ITEM, Records
from model.schema import Feature, FeatureKind, HashBuckets, Schema, Vocabulary

Keys = NDArray[np.int64]
QUANTILE_VALUES = 1 << 20


class FeatureFit:
    """What has been seen so far. Every method may be called any number of times."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._counts = {name: _Counts() for name, table in schema.tables.items() if isinstance(table.encoding, Vocabulary)}
        self._numbers: dict[str, _Moments] = {}
        self._cuts: dict[str, tuple[Feature, _Values]] = {}
        groups = [(USER, schema.user), (CONTEXT, schema.context), (ITEMS, schema.item_features)]
        for group, features in [*groups, *((e.name, e.attributes) for e in schema.events)]:
            for f in features:
                if f.kind is FeatureKind.NUMERIC and f.buckets is not None:
                    self._cuts[f"{group}.{f.name}"] = (f, _Values())
                elif f.kind is FeatureKind.NUMERIC:
                    self._numbers[f"{group}.{f.name}"] = _Moments()

    def users(self, records: Records) -> None:
        """Feature records of users, each once."""
        self._add(USER, self.schema.user, records)

    def items(self, records: Records) -> None:
        """Feature records of items, each once."""
        self._add(ITEMS, self.schema.item_features, records)

    def requests(self, contexts: Records, user_keys: Keys, request_ms: Keys, newest_ms: Keys) -> None:
        """Requests [R]: contexts, user id keys, times, time of the newest event (-1: none)."""
        if self.schema.user_id_table is not None:
            self._count(self.schema.user_id_table, user_keys)
        given = {
            f.name: derived_feature(f.derived, request_ms, newest_ms) for f in self.schema.context if f.derived is not None
        }
        self._add(CONTEXT, self.schema.context, contexts, given)

    def shown(self, item_keys: Keys) -> None:
        """Keys of shown items, with repeats: counts decide `min_count`."""
        self._count(self.schema.item.table, item_keys)

    def events(self, name: str, records: Records) -> None:
        """Events of one type; their items count for the vocabulary of items as well."""
        self._count(self.schema.item.table, records[ITEM])
        self._add(name, self.schema.event(name).attributes, records)

    def stats(self, rates: Mapping[str, RateTable] | None = None) -> FeatureStats:
        """The statistics of everything seen; `rates` (per affinity) are kept as they are."""
        cuts = {
            key: f.buckets.boundaries or _quantiles(values.values, f.buckets.quantiles or 2)
            for key, (f, values) in self._cuts.items()
            if f.buckets is not None
        }
        vocabularies = {}
        for name, counts in self._counts.items():
            encoding = self.schema.tables[name].encoding
            assert not isinstance(encoding, HashBuckets)
            vocabularies[name] = counts.vocabulary(encoding.min_count, encoding.max_size)
        moments = {key: number.figures for key, number in self._numbers.items()}
        return FeatureStats(moments, cuts, vocabularies, rates or {})

    def _count(self, table: str, keys: Keys) -> None:
        if table in self._counts:
            self._counts[table].add(keys)

    def _add(
        self, group: str, features: Sequence[Feature], records: Records, given: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        for f in features:
            key, column = f"{group}.{f.name}", given[f.name] if given and f.name in given else records[f.name]
            if f.kind is not FeatureKind.NUMERIC:
                assert f.table is not None
                self._count(f.table, np.asarray(column, dtype=np.int64).reshape(-1))
                continue
            present = column[~np.isnan(column)].astype(np.float64)
            if key in self._cuts:
                self._cuts[key][1].add(present)
            else:
                self._numbers[key].add(np.log1p(np.maximum(present, 0)) if f.log1p else present)


@dataclass
class _Counts:
    """How often every key was seen."""

    keys: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    counts: Keys = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, keys: Keys) -> None:
        unique, counts = np.unique(keys[keys != MISSING_KEY], return_counts=True)
        both, at = np.unique(np.concatenate([self.keys, unique]), return_inverse=True)
        total = np.zeros(len(both), np.int64)
        np.add.at(total, at, np.concatenate([self.counts, counts]))
        self.keys, self.counts = both, total

    def vocabulary(self, min_count: int, max_size: int) -> Keys:
        """Keys seen often enough, sorted; the most frequent `max_size` of them."""
        keys, counts = self.keys[self.counts >= min_count], self.counts[self.counts >= min_count]
        if len(keys) > max_size:
            keys = np.sort(keys[np.argsort(-counts, kind="stable")[:max_size]])
        return keys


@dataclass
class _Moments:
    """Mean and deviation of blocks of values, merged (Chan, Golub & LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # Σ (x − mean)²

    def add(self, values: NDArray[np.float64]) -> None:
        if not len(values):
            return
        count, mean, squares = len(values), float(values.mean()), float(values.var() * len(values))
        total, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    @property
    def figures(self) -> tuple[float, float]:
        """Mean and deviation; 1 for a feature that does not vary."""
        deviation = (self.squares / self.count) ** 0.5 if self.count else 0.0
        return self.mean, deviation if deviation > 1e-6 else 1.0


@dataclass
class _Values:
    """Values for quantiles: all of them, or every 2ᵏ-th of those that came."""

    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    every: int = 1
    seen: int = 0

    def add(self, values: NDArray[np.float64]) -> None:
        first = -self.seen % self.every
        self.seen += len(values)
        self.values = np.concatenate([self.values, values[first :: self.every]])
        while len(self.values) > QUANTILE_VALUES:
            self.values, self.every = self.values[::2], 2 * self.every


def _quantiles(values: NDArray[np.float64], count: int) -> tuple[float, ...]:
    if not len(values):
        return (0.0,)
    return tuple(float(v) for v in np.unique(np.quantile(values, np.arange(1, count) / count)))
