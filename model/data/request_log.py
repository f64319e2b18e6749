"""The canonical log in memory: every request with its user, context, shown items and labels, as record arrays.

Read by training and evaluation (`load_request_log`). Torch-free. Requests are in time order; items,
users and events are whole tables that all subsets share. Histories come from the same two functions
that the server uses (`model.history`), over events in arrival order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.arrow_columns import event_records, flat, int64_of, item_keys_of, offsets_of, records_of, shown_columns
from model.data.canonical import CanonicalLog, LogFile, read_log
from model.hashing import string_keys
from model.history import arrived_before, visible_history, visible_lengths
from model.records import FieldError, Records, missing_records
from model.schema import EventType, Schema

BLOCK_REQUESTS, BLOCK_SHOWN = 16_384, 262_144
"""What passes over a whole log take at a time, so that their arrays do not grow with it."""


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
    request_ids: Sequence[str]
    time_ms: NDArray[np.int64]  # [N]
    user_index: NDArray[np.int64]  # [N]
    user_ids: Sequence[str]
    user_keys: NDArray[np.int64]  # [U]
    users: Records  # [U]
    contexts: Records  # [N]
    offsets: NDArray[np.int64]  # [N + 1]: request r owns shown items offsets[r]:offsets[r+1]
    item_index: NDArray[np.int64]  # [C]
    positions: NDArray[np.int32]  # [C], -1 unknown
    labels: NDArray[np.float32]  # [C, tasks], NaN unknown
    columns: dict[str, NDArray[np.float32]]  # [C] request columns
    truth: NDArray[np.float32] | None  # [C, tasks] true probabilities of synthetic data
    item_ids: Sequence[str] | Sequence[int]  # of a log that has keys in place of strings: these
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

    def blocks(self, requests: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The given requests, some thousand at a time, with about `BLOCK_SHOWN` shown items at most."""
        shown = max(1, len(self.item_index) // max(1, len(self)))
        size = max(1, min(BLOCK_REQUESTS, BLOCK_SHOWN // shown))
        for start in range(0, len(requests), size):
            yield requests[start : start + size]

    def negatives(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Which shown items (of all, or of `rows`) down-sampling may drop: every task's label is known and 0."""
        return np.asarray(np.all((self.labels if rows is None else self.labels[rows]) == 0, axis=1))

    def weights(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """How many shown items of the full distribution each one (or of `rows`) stands for; not 1 for `negatives` alone."""
        return np.where(self.negatives(rows), 1 / self.negative_rate, 1.0)

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
    requests = requests.take(pa.array(np.argsort(int64_of(requests["time_ms"]), kind="stable")))
    items, users, events = tables[LogFile.ITEMS], tables[LogFile.USERS], tables[LogFile.EVENTS]
    known_users = Identities(users["user_id"].to_pylist())
    user_of, event_user = known_users.numbers_of(requests["user_id"]), known_users.numbers_of(events["user_id"])
    items, shown = _alike(items, flat(requests["items"]), schema)
    known_items = Identities(items["item_id"].to_pylist())
    item_of = known_items.numbers_of(shown)
    user_ids, item_ids = known_users.ids, known_items.ids
    own = shown_columns(requests, schema, len(item_of))
    return RequestLog(
        schema=schema,
        request_ids=requests["request_id"].to_pylist(),
        time_ms=int64_of(requests["time_ms"]),
        user_index=user_of,
        user_ids=user_ids,
        user_keys=string_keys(user_ids, schema.hash),
        users=extended(records_of(users, schema.user, schema, "users.parquet"), len(user_ids)),
        contexts=records_of(requests, [f for f in schema.context if f.derived is None], schema, "requests.parquet"),
        offsets=offsets_of(requests["items"]),
        item_index=item_of,
        positions=own.positions,
        labels=own.labels,
        columns=own.columns,
        truth=own.truth,
        item_ids=item_ids,
        item_keys=item_keys_of(pa.array(item_ids, items["item_id"].type), schema, "items.parquet: item_id"),
        items=extended(records_of(items, schema.item_features, schema, "items.parquet"), len(item_ids)),
        events={e.name: _arrivals(events, e, schema, event_user, len(user_ids)) for e in schema.events},
        negative_rate=log.negative_rate,
    )


def _arrivals(table: pa.Table, event: EventType, schema: Schema, user_of_row: NDArray[np.int64], users: int) -> ArrivalLog:
    own = np.flatnonzero(pc.equal(table["type"], event.name).to_numpy(zero_copy_only=False))
    users_of_own = user_of_row[own]
    order = np.lexsort((np.arange(len(own)), int64_of(table["arrival_ms"])[own], users_of_own))
    records = event_records(table.take(pa.array(own[order])), event, schema)
    counts = np.bincount(users_of_own, minlength=users)
    return ArrivalLog(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), records)


def _alike(items: pa.Table, shown: pa.Array, schema: Schema) -> tuple[pa.Table, pa.Array]:
    """The items table and all shown items, both by key as soon as one of them is."""
    known = items["item_id"]
    if known.type == shown.type:
        return items, shown
    keyed = pa.array(item_keys_of(known, schema, "items.parquet: item_id"))
    at = items.column_names.index("item_id")
    return items.set_column(at, "item_id", keyed), pa.array(item_keys_of(shown, schema, "requests.parquet: items"))


class Identities:
    """Distinct ids in order of appearance, beginning with known ones, and the number of each."""

    def __init__(self, known: list[Any]) -> None:
        self.ids = list(known)
        self._number = {identity: number for number, identity in enumerate(self.ids)}

    def numbers_of(self, column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
        """Numbers [N] of a column's ids; new ones are added."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        encoded = array.dictionary_encode()
        for identity in (found := encoded.dictionary.to_pylist()):
            if identity not in self._number:
                self._number[identity] = len(self.ids)
                self.ids.append(identity)
        lookup = np.array([self._number[i] for i in found], dtype=np.int64)
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        return lookup[codes] if len(codes) else np.empty(0, dtype=np.int64)


def extended(records: Records, count: int) -> Records:
    """Records padded to `count` rows with missing values."""
    return np.concatenate([records, missing_records(records.dtype, count - len(records))])
