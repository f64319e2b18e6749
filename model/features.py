"""Records → what the graphs take: table rows, normalised numbers, padded histories.

Owns the only mapping from keys to embedding rows and from raw numbers to normalised ones, for
training and serving alike. `FeatureEncoder` is built from the schema, the statistics and
vocabularies fitted on training data (`FeatureStats`), and is torch-free. Embedding *rows* are
gathered outside the graphs: `gather` here over memory-mapped tables (serving), `nn.Embedding` over
the same row numbers in training.

Cost: one `searchsorted` per vocabulary feature and column; nothing is done per candidate in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.affinity import (
    PER_FEATURE,
    PER_REQUEST,
    AffinityRecord,
    RateTable,
    ValueSpace,
    overlaps,
    record_of,
    tables_from_arrays,
    tables_to_arrays,
    value_sums,
)
from model.hashing import MISSING_KEY, bucket_of
from model.history import ages_s
from model.records import ITEM, Records
from model.schema import Affinity, Derived, EventType, Feature, FeatureKind, HashBuckets, Schema

PAD_ROW = -1
"""Filler of multi-valued slots: no value here (row 0 means: a value the model does not know)."""

USER, CONTEXT, ITEMS = "user", "context", "item"


@dataclass(frozen=True)
class Slot:
    """One embedded feature of a group: `width` output columns; a multi-valued one averages up to `values` table rows."""

    feature: str
    table: str
    width: int
    values: int = 1
    is_multi: bool = False


@dataclass(frozen=True)
class GroupLayout:
    """What one group of features becomes: embedded slots side by side, then dense columns (the last of them affinities)."""

    name: str
    slots: tuple[Slot, ...]
    dense: tuple[str, ...]
    affinities: tuple[str, ...] = ()  # those dense columns that depend on the user's histories, not on the records alone

    @property
    def embedded_width(self) -> int:
        return sum(slot.width for slot in self.slots)

    @property
    def index_width(self) -> int:
        return sum(slot.values for slot in self.slots)


@dataclass(frozen=True)
class Encoded:
    """An encoded group: `rows` int32 [N, index_width] table rows, `dense` float32 [N, len(dense)]."""

    rows: NDArray[np.int32]
    dense: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class EncodedHistory:
    """One event type's histories, padded to T: events [U, T, …], `age_s` float32 [U, T], `lengths` int64 [U]."""

    events: Encoded
    age_s: NDArray[np.float32]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class FeatureStats:
    """What was fitted on training data.

    `moments`: mean and deviation per dense numeric feature, keyed `group.feature` (after log1p).
    `boundaries`: cut points per bucketed feature. `vocabularies`: sorted int64 keys per table; the
    key at position i owns row i + 1. `rates`: success rates of items per affinity.
    """

    moments: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    boundaries: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    vocabularies: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    rates: Mapping[str, RateTable] = field(default_factory=dict)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is stored as arrays beside the JSON: vocabularies by table, then rates."""
        return {**self.vocabularies, **tables_to_arrays(self.rates)}

    def to_json(self) -> dict[str, Any]:
        """Moments and boundaries; the rest is stored as arrays beside it."""
        return {
            "moments": {k: list(v) for k, v in self.moments.items()},
            "boundaries": {k: list(v) for k, v in self.boundaries.items()},
            "rates": list(self.rates),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> FeatureStats:
        """From `to_json` and `arrays`."""
        return cls(
            {k: (float(v[0]), float(v[1])) for k, v in data["moments"].items()},
            {k: tuple(map(float, v)) for k, v in data["boundaries"].items()},
            {k: v for k, v in arrays.items() if "." not in k},
            tables_from_arrays(arrays, data.get("rates", ())),
        )


@dataclass(frozen=True)
class Affinities:
    """What histories say of a request (`context` float32 [·]) and of its candidates (`items` float32 [C, ·])."""

    context: NDArray[np.float32]
    items: NDArray[np.float32]


class FeatureLayout:
    """Group layouts and table sizes, from the schema alone (sizes of vocabularies need the stats)."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.bucket_tables: dict[str, int] = {}
        user_slots: list[Slot] = []
        if schema.user_id_table is not None:
            user_slots.append(Slot("user_id", schema.user_id_table, schema.tables[schema.user_id_table].width))
        self.user = self._group(USER, schema.user, user_slots, [f"{e.name}_count" for e in schema.events])
        own = [f"{a.name}_{what}" for a in schema.affinities for what in PER_REQUEST]
        self.context = self._group(CONTEXT, schema.context, affinities=own)
        item_slot = Slot(ITEM, schema.item.table, schema.tables[schema.item.table].width)
        own = [f"{a.name}_{by}_{what}" for a in schema.affinities for by in a.by for what in PER_FEATURE]
        self.item = self._group(ITEMS, schema.item_features, [item_slot], affinities=own)
        self.events = {e.name: self._group(e.name, e.attributes, [item_slot], ["log_age"]) for e in schema.events}

    def _group(
        self,
        name: str,
        features: Sequence[Feature],
        slots: Sequence[Slot] = (),
        dense: Sequence[str] = (),
        affinities: Sequence[str] = (),
    ) -> GroupLayout:
        slots, dense = list(slots), list(dense)
        for f in features:
            if f.is_dense:
                dense.append(f.name)
            elif f.buckets is not None:
                table = f"{name}.{f.name}"
                self.bucket_tables[table] = f.buckets.width
                slots.append(Slot(f.name, table, f.buckets.width))
            else:
                assert f.table is not None
                is_multi = f.kind is FeatureKind.MULTI
                width = self.schema.tables[f.table].width
                slots.append(Slot(f.name, f.table, width, f.max_values if is_multi else 1, is_multi))
        return GroupLayout(name, tuple(slots), (*dense, *affinities), tuple(affinities))

    def groups(self) -> dict[str, GroupLayout]:
        """All groups by name."""
        return {g.name: g for g in (self.user, self.context, self.item, *self.events.values())}

    def table_widths(self) -> dict[str, int]:
        """Embedding width of every table that is used."""
        return {slot.table: slot.width for group in self.groups().values() for slot in group.slots}


@dataclass(frozen=True)
class _AffinityPlan:
    """Of one affinity: its value space, and the columns of an item's encoded rows that enter it."""

    space: ValueSpace
    item_columns: NDArray[np.int64]


class FeatureEncoder:
    """Encodes records of every group. Immutable; safe to share between threads."""

    def __init__(self, schema: Schema, stats: FeatureStats) -> None:
        self.schema, self.stats = schema, stats
        self.layout = FeatureLayout(schema)
        self._item_features = {f.name: f for f in schema.item_features}
        self._affinity_plans = tuple(self._affinity_plan(a) for a in schema.affinities)
        columns = {"context": (CONTEXT, self.layout.context), "items": (ITEMS, self.layout.item)}
        self._affinity_moments = {
            name: np.array([stats.moments.get(f"{group}.{c}", (0.0, 1.0)) for c in layout.affinities], np.float32).T
            for name, (group, layout) in columns.items()
        }

    def table_rows(self) -> dict[str, int]:
        """Number of rows of every table, row 0 (unknown or missing) included."""
        sizes = {}
        for name in self.layout.table_widths():
            if name in self.layout.bucket_tables:
                sizes[name] = len(self.stats.boundaries[name]) + 2
            elif isinstance(encoding := self.schema.tables[name].encoding, HashBuckets):
                sizes[name] = encoding.buckets + 1
            else:
                sizes[name] = len(self.stats.vocabularies[name]) + 1
        return sizes

    def lookup(self, table: str, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows of keys of any shape; row 0 for unknown and missing ones."""
        encoding = self.schema.tables[table].encoding
        if isinstance(encoding, HashBuckets):
            return bucket_of(keys, encoding.buckets).astype(np.int32)
        vocabulary = self.stats.vocabularies[table]
        if not len(vocabulary):
            return np.zeros(keys.shape, dtype=np.int32)
        at = np.minimum(np.searchsorted(vocabulary, keys), len(vocabulary) - 1)
        return np.where(vocabulary[at] == keys, at + 1, 0).astype(np.int32)

    def encode_users(self, records: Records, user_keys: NDArray[np.int64], counts: NDArray[np.int64]) -> Encoded:
        """Users: feature records [U], user id keys [U], history lengths per event type [U, E] (after the cap)."""
        lead = [self.lookup(self.schema.user_id_table, user_keys)[:, None]] if self.schema.user_id_table else []
        return self._encode(self.layout.user, self.schema.user, records, lead, [np.log1p(counts).astype(np.float32)])

    def encode_context(
        self,
        records: Records,
        request_ms: NDArray[np.int64],
        newest_ms: NDArray[np.int64],
        affinities: Sequence[Affinities] = (),
    ) -> Encoded:
        """Contexts: records [R], request times [R], time of the newest event per request (-1: none) [R], `affinities` [R]."""
        derived = {
            f.name: derived_feature(f.derived, request_ms, newest_ms) for f in self.schema.context if f.derived is not None
        }
        encoded = self._encode(self.layout.context, self.schema.context, records, derived=derived)
        if not self.schema.affinities:
            return encoded
        return Encoded(encoded.rows, np.concatenate([encoded.dense, np.stack([a.context for a in affinities])], axis=1))

    def affinity_record(self, histories: Mapping[str, Records]) -> AffinityRecord:
        """What visible histories say for affinities: one pass over their values, whatever the candidates."""
        if not self.schema.affinities:
            return AffinityRecord.nothing()
        context, sums = [], []
        for a, plan in zip(self.schema.affinities, self._affinity_plans, strict=True):
            events = histories[a.event]
            record = record_of(events, histories[a.outcome], self.stats.rates[a.name], a.prior)
            rows = np.concatenate([self._affinity_rows(name, events) for name in a.by], axis=1)
            context.append(record.request)
            sums.append(value_sums(plan.space, rows, record.residuals))
        return AffinityRecord(self._scaled_affinities("context", np.concatenate(context)), tuple(sums))

    def encode_affinities(self, item_rows: NDArray[np.int32], record: AffinityRecord) -> Affinities:
        """Affinities of candidates with encoded rows [C, index_width] to a user: one lookup per value of a candidate."""
        plans = zip(self._affinity_plans, record.sums, strict=True)
        items = [overlaps(plan.space, item_rows[:, plan.item_columns], sums) for plan, sums in plans]
        return Affinities(record.context, self._scaled_affinities("items", np.concatenate(items, axis=1)))

    def _affinity_rows(self, name: str, events: Records) -> NDArray[np.int32]:
        """Table rows [H, values] of what events have in common with items, by the item feature's own table and boundaries."""
        if name == ITEM:
            return self.lookup(self.schema.item.table, events[ITEM])[:, None]
        return self._rows(f"{ITEMS}.{name}", self._item_features[name], events[name])

    def _affinity_plan(self, affinity: Affinity) -> _AffinityPlan:
        rows, columns, at = self.table_rows(), {}, 0
        for slot in self.layout.item.slots:
            columns[slot.feature] = np.arange(at, at + slot.values)
            at += slot.values
        tables = {slot.feature: slot.table for slot in self.layout.item.slots}
        attributes = {f.name: f for f in self.schema.event(affinity.event).attributes}
        values = [attributes[n].max_values if n != ITEM and attributes[n].kind is FeatureKind.MULTI else 1 for n in affinity.by]
        space = ValueSpace.of([rows[tables[n]] for n in affinity.by], values, [len(columns[n]) for n in affinity.by])
        return _AffinityPlan(space, np.concatenate([columns[n] for n in affinity.by]))

    def _scaled_affinities(self, group: str, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        mean, deviation = self._affinity_moments[group]
        return np.asarray(((columns - mean) / deviation).clip(-8, 8), dtype=np.float32)

    def encode_items(self, keys: NDArray[np.int64], records: Records) -> Encoded:
        """Candidates: item keys [C] and their feature records [C]; dense columns without the affinities."""
        lead = [self.lookup(self.schema.item.table, keys)[:, None]]
        return self._encode(self.layout.item, self.schema.item_features, records, lead)

    def encode_histories(
        self, event: EventType, histories: Sequence[Records], newest_ms: Sequence[int | None], length: int
    ) -> EncodedHistory:
        """Histories of one event type, padded at the end to `length`; relative to each user's newest event."""
        layout, count = self.layout.events[event.name], len(histories)
        lengths = np.fromiter((len(h) for h in histories), dtype=np.int64, count=count)
        rows = np.zeros((count, length, layout.index_width), dtype=np.int32)
        dense = np.zeros((count, length, len(layout.dense)), dtype=np.float32)
        age = np.zeros((count, length), dtype=np.float32)
        if lengths.sum():
            packed = np.concatenate([h for h in histories if len(h)])
            packed_age = np.concatenate(
                [ages_s(h, newest) for h, newest in zip(histories, newest_ms, strict=True) if len(h) and newest is not None]
            )
            lead = [self.lookup(self.schema.item.table, packed[ITEM])[:, None]]
            encoded = self._encode(layout, event.attributes, packed, lead, [np.log1p(packed_age)[:, None] / 10])
            valid = np.arange(length)[None, :] < lengths[:, None]
            rows[valid], dense[valid], age[valid] = encoded.rows, encoded.dense, packed_age
        return EncodedHistory(Encoded(rows, dense), age, lengths)

    def _encode(
        self,
        layout: GroupLayout,
        features: Sequence[Feature],
        records: Records,
        lead_rows: Sequence[NDArray[np.int32]] = (),
        lead_dense: Sequence[NDArray[np.float32]] = (),
        derived: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> Encoded:
        rows, dense = list(lead_rows), list(lead_dense)
        for f in features:
            column = derived[f.name] if derived and f.name in derived else records[f.name]
            key = f"{layout.name}.{f.name}"
            if f.is_dense:
                dense.append(self._normalise(key, f, column)[:, None])
            else:
                rows.append(self._rows(key, f, column))
        count = len(records)
        return Encoded(
            np.concatenate(rows, axis=1) if rows else np.zeros((count, 0), np.int32),
            np.concatenate(dense, axis=1) if dense else np.zeros((count, 0), np.float32),
        )

    def _rows(self, key: str, f: Feature, column: NDArray[Any]) -> NDArray[np.int32]:
        """Table rows [N, values] of an embedded feature; `key` names its boundaries if it has buckets."""
        if f.buckets is not None:
            cut = np.searchsorted(self.stats.boundaries[key], column, side="right") + 1
            return np.where(np.isnan(column), 0, cut).astype(np.int32)[:, None]
        assert f.table is not None
        found = self.lookup(f.table, np.asarray(column, dtype=np.int64))
        if f.kind is FeatureKind.MULTI:
            found = np.where(column == MISSING_KEY, np.int32(PAD_ROW), found)
        return found if found.ndim == 2 else found[:, None]

    def _normalise(self, key: str, f: Feature, column: NDArray[np.float32]) -> NDArray[np.float32]:
        mean, deviation = self.stats.moments[key]
        with np.errstate(invalid="ignore"):
            value = np.log1p(np.maximum(column, 0)) if f.log1p else column
        scaled = ((value - mean) / deviation).astype(np.float32)
        scaled[np.isnan(scaled)] = 0
        return scaled.clip(-8, 8)


def gather(layout: GroupLayout, rows: NDArray[np.int32], tables: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Embedded columns float32 [..., embedded_width] of table rows int32 [..., index_width]."""
    out = np.empty((*rows.shape[:-1], layout.embedded_width), dtype=np.float32)
    column = index = 0
    for slot in layout.slots:
        target = out[..., column : column + slot.width]
        part = rows[..., index : index + slot.values]
        if not slot.is_multi:
            target[...] = tables[slot.table][part[..., 0]]
        else:
            valid = (part != PAD_ROW)[..., None]
            total = np.where(valid, tables[slot.table][np.maximum(part, 0)], np.float32(0)).sum(axis=-2, dtype=np.float32)
            target[...] = total / np.maximum(valid.sum(axis=-2), 1).astype(np.float32)
        column, index = column + slot.width, index + slot.values
    return out


def derived_feature(kind: Derived, request_ms: NDArray[np.int64], newest_ms: NDArray[np.int64]) -> NDArray[np.float32]:
    """Derived context feature, float32 [R]; times in UTC."""
    seconds = request_ms // 1000
    if kind is Derived.HOUR_OF_DAY:
        return (seconds // 3600 % 24).astype(np.float32)
    if kind is Derived.DAY_OF_WEEK:
        return ((seconds // 86_400 + 3) % 7).astype(np.float32)
    elapsed = np.maximum(request_ms - newest_ms, 0) / 1000.0
    return np.where(newest_ms < 0, np.nan, elapsed).astype(np.float32)


def fit_affinity_moments(encoder: FeatureEncoder, samples: Iterable[Affinities]) -> FeatureStats:
    """The statistics of `encoder`, which have no moments of affinities yet, with those of what it made of training requests."""
    layout, every = encoder.layout, list(samples)
    moments = dict(encoder.stats.moments)
    for group, names, columns in (
        (CONTEXT, layout.context.affinities, np.stack([a.context for a in every])),
        (ITEMS, layout.item.affinities, np.concatenate([a.items for a in every])),
    ):
        for name, column in zip(names, columns.astype(np.float64).T, strict=True):
            deviation = float(column.std())
            moments[f"{group}.{name}"] = (float(column.mean()), deviation if deviation > 1e-6 else 1.0)
    return replace(encoder.stats, moments=moments)


__all__ = [
    "Affinities",
    "Encoded",
    "EncodedHistory",
    "FeatureEncoder",
    "FeatureLayout",
    "FeatureStats",
    "GroupLayout",
    "Slot",
    "derived_feature",
    "fit_affinity_moments",
    "gather",
]
