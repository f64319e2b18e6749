"""The canonical log in memory: every request with its user, context, shown items and labels, as record arrays.

Read by training and evaluation (`load_request_log`). Torch-free. Requests are in time order; items,
users and events are whole tables that all subsets share. Histories come from the same two functions
that the server uses (`model.history`), over events in arrival order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.canonical import CanonicalLog, LogFile, read_log
from model.hashing import MISSING_KEY, string_keys
from model.history import arrived_before, visible_history, visible_lengths
from model.records import (
    ARRIVAL_MS,
    ITEM,
    TIME_MS,
    FieldError,
    Records,
    event_dtype,
    feature_dtype,
    fill_multi_column,
    fill_scalar_column,
    missing_records,
)
from model.records import keys as keys_of
from model.schema import EventType, Feature, FeatureKind, HashSpec, Schema


@dataclass(frozen=True)
class ArrivalLog:
    """Events of one type, grouped by user (user u owns records[offsets[u]:offsets[u+1]]), in arrival order."""

    offsets: NDArray[np.int64]  # [U + 1]
    records: Records

    def of_user(self, user_index: int) -> Records:
        """All events of one user."""
        return self.records[self.offsets[user_index] : self.offsets[user_index + 1]]


@dataclass(frozen=True)
class RequestLog:
    """N requests in time order, C shown items, U users, I items."""

    schema: Schema
    request_ids: list[str]
    time_ms: NDArray[np.int64]  # [N]
    user_index: NDArray[np.int64]  # [N]
    user_ids: list[str]
    user_keys: NDArray[np.int64]  # [U]
    users: Records  # [U]
    contexts: Records  # [N]
    offsets: NDArray[np.int64]  # [N + 1]: request r owns shown items offsets[r]:offsets[r+1]
    item_index: NDArray[np.int64]  # [C]
    positions: NDArray[np.int32]  # [C], -1 unknown
    labels: NDArray[np.float32]  # [C, tasks], NaN unknown
    columns: dict[str, NDArray[np.float32]]  # [C] request columns
    truth: NDArray[np.float32] | None  # [C, tasks] true probabilities of synthetic data
    item_ids: list[str] | list[int]  # of a log that has keys in place of strings: these
    item_keys: NDArray[np.int64]  # [I]
    items: Records  # [I]
    events: dict[str, ArrivalLog]
    negative_rate: float = 1.0  # share kept of the shown items whose labels are all 0; 1: the log is complete

    def __len__(self) -> int:
        return len(self.request_ids)

    def histories(self, request: int) -> dict[str, Records]:
        """What the model sees of each event type at the request's moment, oldest first."""
        user, now = int(self.user_index[request]), int(self.time_ms[request])
        return {
            event.name: visible_history(arrived_before(self.events[event.name].of_user(user), now), event, now)
            for event in self.schema.events
        }

    def history_lengths(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many events of each type the given requests see, [N, event types], as `histories` has them."""
        lengths = np.zeros((len(requests), len(self.schema.events)), dtype=np.int64)
        order = np.argsort(self.user_index[requests], kind="stable")
        users, starts = np.unique(self.user_index[requests][order], return_index=True)
        for user, own in zip(users.tolist(), np.split(order, starts[1:]), strict=True):
            times = self.time_ms[requests[own]]
            for number, event in enumerate(self.schema.events):
                lengths[own, number] = visible_lengths(self.events[event.name].of_user(user), event, times)
        return lengths

    def shown(self, request: int) -> slice:
        """The request's rows in the shown-item arrays."""
        return slice(int(self.offsets[request]), int(self.offsets[request + 1]))

    def rows_of(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [C'] of the given requests in the shown-item arrays, in the given order."""
        sizes = self.offsets[requests + 1] - self.offsets[requests]
        ends = np.cumsum(sizes)
        return np.repeat(self.offsets[requests] - (ends - sizes), sizes) + np.arange(sizes.sum())

    def negatives(self) -> NDArray[np.bool_]:
        """Shown items [C] that down-sampling may drop: every task's label is known and 0."""
        return np.asarray(np.all(self.labels == 0, axis=1))

    def weights(self) -> NDArray[np.float64]:
        """How many shown items of the full distribution each one [C] stands for: `negatives` 1 / `negative_rate`, others 1."""
        return np.where(self.negatives(), 1 / self.negative_rate, 1.0)

    def subset(self, requests: NDArray[np.int64] | NDArray[np.bool_]) -> RequestLog:
        """The given requests only, in the given order; users, items and events stay whole."""
        chosen = np.flatnonzero(requests) if requests.dtype == bool else requests.astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(self.offsets[chosen + 1] - self.offsets[chosen])])
        rows = self.rows_of(chosen)
        return replace(
            self,
            request_ids=[self.request_ids[r] for r in chosen],
            time_ms=self.time_ms[chosen],
            user_index=self.user_index[chosen],
            contexts=self.contexts[chosen],
            offsets=offsets,
            item_index=self.item_index[rows],
            positions=self.positions[rows],
            labels=self.labels[rows],
            columns={name: column[rows] for name, column in self.columns.items()},
            truth=None if self.truth is None else self.truth[rows],
        )


def load_request_log(directory: str | Path) -> RequestLog:
    """Read a canonical log directory; raises `ConfigError` naming file, column, what was expected and found."""
    log = read_log(directory)
    try:
        return _build(log)
    except FieldError as error:
        raise ConfigError(f"{log.path}/{error}") from error


def _build(log: CanonicalLog) -> RequestLog:
    schema, tables = log.schema, log.tables
    requests = tables[LogFile.REQUESTS]
    requests = requests.take(pa.array(np.argsort(_int64(requests["time_ms"]), kind="stable")))
    items, users, events = tables[LogFile.ITEMS], tables[LogFile.USERS], tables[LogFile.EVENTS]
    user_ids, (user_of, event_user) = _identities(users["user_id"], requests["user_id"], events["user_id"])
    items, shown = _alike(items, _flat(requests["items"]), schema)
    item_ids, (item_of,) = _identities(items["item_id"], shown)
    rows = len(item_of)
    tasks = [f"label_{t.name}" for t in schema.tasks]
    truth = [f"truth_{t.name}" for t in schema.tasks]
    return RequestLog(
        schema=schema,
        request_ids=requests["request_id"].to_pylist(),
        time_ms=_int64(requests["time_ms"]),
        user_index=user_of,
        user_ids=user_ids,
        user_keys=string_keys(user_ids, schema.hash),
        users=_extended(records_of(users, schema.user, schema, "users.parquet"), len(user_ids)),
        contexts=records_of(requests, [f for f in schema.context if f.derived is None], schema, "requests.parquet"),
        offsets=_offsets(requests["items"]),
        item_index=item_of,
        positions=_numbers(requests, "positions", rows, np.int32, -1),
        labels=np.stack([_labels(requests, name, rows) for name in tasks], axis=1),
        columns={c: _numbers(requests, f"column_{c}", rows, np.float32, np.nan) for c in schema.request_columns},
        truth=(
            np.stack([_numbers(requests, name, rows, np.float32, np.nan) for name in truth], axis=1)
            if all(name in requests.column_names for name in truth)
            else None
        ),
        item_ids=item_ids,
        item_keys=item_keys_of(pa.array(item_ids, items["item_id"].type), schema, "items.parquet: item_id"),
        items=_extended(records_of(items, schema.item_features, schema, "items.parquet"), len(item_ids)),
        events={e.name: _arrivals(events, e, schema, event_user, len(user_ids)) for e in schema.events},
        negative_rate=log.negative_rate,
    )


def records_of(table: pa.Table, features: Sequence[Feature], schema: Schema, where: str, prefix: str = "") -> Records:
    """Feature records of a Parquet table's rows; columns are called ``<prefix><feature>``, absent ones are missing."""
    records = missing_records(feature_dtype(features), len(table))
    for f in features:
        name = prefix + f.name
        if name not in table.column_names:
            continue
        column = table[name].combine_chunks()
        if f.kind is FeatureKind.MULTI:
            filled = pc.coalesce(column, pa.scalar([], column.type))
            fill_multi_column(
                records, f, _ids(_flat(filled), schema.hash), _offsets(filled).tolist(), schema.hash, f"{where}: {name}"
            )
        else:
            values = column.to_pylist() if f.kind is FeatureKind.NUMERIC else _ids(column, schema.hash)
            fill_scalar_column(records, f, values, schema.hash, f"{where}: {name}")
    return records


def item_keys_of(column: pa.ChunkedArray | pa.Array, schema: Schema, where: str) -> NDArray[np.int64]:
    """int64 keys [N] of a column of item ids, or of their keys; raises `FieldError`."""
    return keys_of(_ids(column, schema.hash), schema.item.id_type, schema.hash, where)


def event_records(table: pa.Table, event: EventType, schema: Schema) -> Records:
    """Event records of rows of an events table that all have type `event`."""
    records = np.zeros(len(table), dtype=event_dtype(event))
    records[ITEM] = item_keys_of(table["item_id"], schema, "events.parquet: item_id")
    records[TIME_MS], records[ARRIVAL_MS] = _int64(table["time_ms"]), _int64(table["arrival_ms"])
    attributes = records_of(table, event.attributes, schema, "events.parquet", f"{event.name}.")
    for f in event.attributes:
        records[f.name] = attributes[f.name]
    return records


def _arrivals(table: pa.Table, event: EventType, schema: Schema, user_of_row: NDArray[np.int64], users: int) -> ArrivalLog:
    own = np.flatnonzero(pc.equal(table["type"], event.name).to_numpy(zero_copy_only=False))
    users_of_own = user_of_row[own]
    order = np.lexsort((np.arange(len(own)), _int64(table["arrival_ms"])[own], users_of_own))
    records = event_records(table.take(pa.array(own[order])), event, schema)
    counts = np.bincount(users_of_own, minlength=users)
    return ArrivalLog(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), records)


def _ids(column: pa.ChunkedArray | pa.Array, hash_spec: HashSpec) -> Any:
    """Keys int64 [N] of texts, each distinct one hashed once, or of integers (ids or keys); `MISSING_KEY` for null."""
    if pa.types.is_string(column.type):
        encoded = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).dictionary_encode()
        keys = np.append(string_keys(encoded.dictionary.to_pylist(), hash_spec), np.int64(MISSING_KEY))
        return keys[pc.fill_null(encoded.indices, len(keys) - 1).to_numpy(zero_copy_only=False)]
    return np.asarray(pc.fill_null(column.cast(pa.int64()), MISSING_KEY).to_numpy(zero_copy_only=False))


def _alike(items: pa.Table, shown: pa.Array, schema: Schema) -> tuple[pa.Table, pa.Array]:
    """The items table and all shown items, both by key as soon as one of them is."""
    known = items["item_id"]
    if known.type == shown.type:
        return items, shown
    keyed = pa.array(item_keys_of(known, schema, "items.parquet: item_id"))
    at = items.column_names.index("item_id")
    return items.set_column(at, "item_id", keyed), pa.array(item_keys_of(shown, schema, "requests.parquet: items"))


def _identities(known: pa.ChunkedArray, *columns: pa.ChunkedArray | pa.Array) -> tuple[list[Any], list[NDArray[np.int64]]]:
    """All ids, those of `known` first, and the rows of every column's ids among them."""
    ids = known.to_pylist()
    row_of: dict[Any, int] = {identity: row for row, identity in enumerate(ids)}
    indices = []
    for column in columns:
        encoded = (
            column.combine_chunks().dictionary_encode() if isinstance(column, pa.ChunkedArray) else column.dictionary_encode()
        )
        for identity in encoded.dictionary.to_pylist():
            if identity not in row_of:
                row_of[identity] = len(ids)
                ids.append(identity)
        lookup = np.array([row_of[i] for i in encoded.dictionary.to_pylist()], dtype=np.int64)
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        indices.append(lookup[codes] if len(codes) else np.empty(0, dtype=np.int64))
    return ids, indices


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """All values of a list column, in order."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten()


def _offsets(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """Row boundaries of a list column, from 0."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _numbers(table: pa.Table, name: str, rows: int, dtype: Any, missing: float) -> NDArray[Any]:
    """A flat list column aligned with the shown items; a null row or an absent column is all missing."""
    out = np.full(rows, missing, dtype=dtype)
    if name not in table.column_names:
        return out
    column, bounds = table[name], _offsets(table["items"])
    sizes, given = np.diff(bounds), np.diff(_offsets(column))
    present = pc.is_valid(column).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(present & (sizes != given))
    if len(wrong):
        raise FieldError(
            f"requests.parquet: {name}", f"{sizes[wrong[0]]} values (as `items`) in row {wrong[0]}", str(given[wrong[0]])
        )
    values = pc.fill_null(_flat(column).cast(pa.float64()), float("nan") if dtype != np.int32 else float(missing))
    out[np.repeat(present, sizes)] = values.to_numpy(zero_copy_only=False)
    return out


def _labels(table: pa.Table, name: str, rows: int) -> NDArray[np.float32]:
    """Labels 0 and 1, NaN where unknown."""
    labels = _numbers(table, name, rows, np.float32, np.nan)
    if np.any((labels != 0) & (labels != 1) & ~np.isnan(labels)):
        raise FieldError(f"requests.parquet: {name}", "labels 0, 1 or null", str(np.nanmax(labels)))
    return labels


def _int64(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _extended(records: Records, count: int) -> Records:
    """Records padded to `count` rows with missing values."""
    return np.concatenate([records, missing_records(records.dtype, count - len(records))])
