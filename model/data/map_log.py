"""Writes the arrays of a mapped log (`model.data.mapped_log`) from the Parquet files of a canonical log.

Reads some thousand rows at a time. Requests are appended in the order of the file and, if that is not the order of time, are
brought into it by a second pass; events go through a counting sort by user, and are sorted by arrival within users whose
events the file has in another order. Memory: a few numbers per request and user, and the ids of users and items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.data.arrow_columns import event_records, flat, int64_of, item_keys_of, offsets_of, records_of, shown_columns
from model.data.canonical import LogError, LogFile, read_batches, read_file
from model.data.mapped_arrays import MappedArrays, bounds_of
from model.data.request_log import Identities
from model.hashing import string_keys
from model.records import ARRIVAL_MS, event_dtype, feature_dtype
from model.schema import HashSpec, IdType, Schema

READ_ROWS, SORT_ROWS = 2_048, 65_536
_USER_FACTOR = np.int64(-7_046_029_254_386_353_131)
"""Odd, so that events of different users with one id have different hashes."""


class LogWriter:
    """One pass over the Parquet files, and a second over the arrays where requests are not in time order."""

    def __init__(self, path: Path, schema: Schema, folder: Path, progress: Callable[[int, int], None]) -> None:
        self.path, self.schema, self.arrays, self.progress = path, schema, MappedArrays(folder), progress
        self.users_table, self.items_table = (read_file(path, file, schema) for file in (LogFile.USERS, LogFile.ITEMS))
        self.users = Identities(self.users_table["user_id"].to_pylist())
        self.is_keyed = self._has_keys()
        known = self.items_table["item_id"]
        if self.is_keyed and not pa.types.is_integer(known.type):
            known = pa.array(item_keys_of(known, schema, "items.parquet: item_id"))
        self.items = Identities(known.to_pylist())
        self.done = 0

    def write(self) -> dict[str, Any]:
        """Write everything; returns what whoever opens the arrays has to know. Raises `LogError` and `FieldError`."""
        truth = self._requests()
        self._events()
        self.arrays.close()
        for name, ids in (("users", self.users.ids), ("items", self.items.ids)):
            if ids and isinstance(ids[0], str):
                self.arrays.append_texts(f"{name}.text", pa.array(ids))
            else:
                self.arrays.append(f"{name}.key", np.array(ids, np.int64))
        self.arrays.close()
        return {"has_truth": truth, "is_keyed": self.is_keyed}

    def _requests(self) -> bool:
        """Write requests in file order, then in time order; returns whether true probabilities are among the columns."""
        stored = [f for f in self.schema.context if f.derived is None]
        has_truth, widths = False, {"item": 8, "position": 4, "label": 4 * len(self.schema.tasks)}
        widths |= {f"column_{c}": 4 for c in self.schema.request_columns}
        for table in self._read(LogFile.REQUESTS):
            shown = flat(table["items"])
            if self.is_keyed and not pa.types.is_integer(shown.type):
                shown = pa.array(item_keys_of(shown, self.schema, "requests.parquet: items"))
            own = shown_columns(table, self.schema, len(shown))
            append = self.arrays.append
            append("time_ms", int64_of(table["time_ms"]))
            append("user", self.users.numbers_of(table["user_id"]))
            append("context", records_of(table, stored, self.schema, "requests.parquet"))
            append("shown", np.diff(offsets_of(table["items"])))
            append("item", self.items.numbers_of(shown))
            append("position", own.positions)
            append("label", own.labels)
            for name, column in own.columns.items():
                append(f"column_{name}", column)
            if own.truth is not None:
                has_truth = True
                append("truth", own.truth)
            append("request_hash", string_keys(table["request_id"].to_pylist(), HashSpec()))
            self.arrays.append_texts("request.text", table["request_id"].combine_chunks())
        self.arrays.close()
        self._refuse_repeated("request_hash", "requests.parquet", "request_id", "distinct ids")
        if has_truth:
            widths["truth"] = 4 * len(self.schema.tasks)
        time_ms = self.arrays.mapped("time_ms", np.int64)
        if len(time_ms) and np.any(np.diff(time_ms) < 0):
            order = np.argsort(time_ms, kind="stable")
            del time_ms
            self._reorder(order, widths, feature_dtype(stored).itemsize)
        return has_truth

    def _reorder(self, order: NDArray[np.int64], widths: dict[str, int], context_width: int) -> None:
        """Bring the arrays of requests, and of what they own, into `order`."""
        per_shown, per_text = self.arrays.mapped("shown", np.int64), self.arrays.mapped("request.text.length", np.int64)
        for name, width in widths.items():
            self._gather(name, width, per_shown, order)
        self._gather("request.text", 1, per_text, order)
        ones = np.ones(len(order), np.int64)
        fixed = {"time_ms": 8, "user": 8, "shown": 8, "request.text.length": 8, "context": context_width}
        for name, width in fixed.items():
            if width:
                self._gather(name, width, ones, order)

    def _gather(self, name: str, width: int, sizes: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        source = self.arrays.mapped(name, np.dtype((np.void, width)))
        begins = np.cumsum(sizes) - sizes
        aside = MappedArrays(self.arrays.folder)
        for start in range(0, len(order), READ_ROWS):
            chosen = order[start : start + READ_ROWS]
            own = sizes[chosen]
            ends = np.cumsum(own)
            rows = np.repeat(begins[chosen] - (ends - own), own) + np.arange(own.sum())
            aside.append(f"{name}.sorted", source[rows])
        aside.close()
        (self.arrays.folder / f"{name}.sorted").replace(self.arrays.folder / name)

    def _events(self) -> None:
        """Write events of every type by user and arrival."""
        for table in self._read(LogFile.EVENTS):
            users = self.users.numbers_of(table["user_id"])
            ids = string_keys(table["event_id"].to_pylist(), HashSpec())
            with np.errstate(over="ignore"):
                self.arrays.append("event_hash", ids + users * _USER_FACTOR)
            kinds = table["type"].combine_chunks()
            for event in self.schema.events:
                own = np.flatnonzero(pc.equal(kinds, event.name).to_numpy(zero_copy_only=False))
                if len(own):
                    self.arrays.append(f"{event.name}.unsorted", event_records(table.take(pa.array(own)), event, self.schema))
                    self.arrays.append(f"{event.name}.user", users[own])
        self.arrays.close()
        self._refuse_repeated("event_hash", "events.parquet", "event_id", "distinct ids per user")
        for event in self.schema.events:
            self._sort_events(event.name, event_dtype(event))

    def _sort_events(self, name: str, dtype: Any) -> None:
        """Events of one type: a counting sort by user that keeps the order of the file, then by arrival within users."""
        users, unsorted = self.arrays.mapped(f"{name}.user", np.int64), self.arrays.mapped(f"{name}.unsorted", dtype)
        counts = np.zeros(len(self.users.ids), np.int64)
        for start in range(0, len(users), SORT_ROWS):
            counts += np.bincount(users[start : start + SORT_ROWS], minlength=len(counts))
        offsets = bounds_of(counts)
        placed, free = self.arrays.created(name, dtype, len(users)), offsets[:-1].copy()
        for start in range(0, len(users), SORT_ROWS):
            own = users[start : start + SORT_ROWS]
            order = np.argsort(own, kind="stable")
            present, first, many = np.unique(own[order], return_index=True, return_counts=True)
            rank = np.arange(len(own)) - np.repeat(first, many)
            placed[free[own[order]] + rank] = unsorted[start : start + SORT_ROWS][order]
            free[present] += many
        for user in self._out_of_order(placed, offsets).tolist():
            own_events = placed[offsets[user] : offsets[user + 1]]
            own_events[:] = own_events[np.argsort(own_events[ARRIVAL_MS], kind="stable")]
        self.arrays.append(f"{name}.offsets", offsets)
        for part in (f"{name}.user", f"{name}.unsorted"):
            (self.arrays.folder / part).unlink(missing_ok=True)

    def _out_of_order(self, placed: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Users some of whose events do not follow each other by arrival."""
        found = []
        for start in range(0, len(placed), SORT_ROWS):
            arrival = placed[start : start + SORT_ROWS + 1][ARRIVAL_MS]
            late = start + 1 + np.flatnonzero(np.diff(arrival) < 0)
            user = np.searchsorted(offsets, late, side="right") - 1
            found.append(user[offsets[user] < late])  # the first event of a user follows another user's
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def _read(self, file: LogFile) -> Iterator[pa.Table]:
        for table in read_batches(self.path, file, self.schema, READ_ROWS):
            yield table
            self.done += len(table)
            self.progress(self.done, self._rows)

    @property
    def _rows(self) -> int:
        return sum(pq.read_metadata(self.path / f"{f}.parquet").num_rows for f in (LogFile.REQUESTS, LogFile.EVENTS))

    def _has_keys(self) -> bool:
        """Whether ids of items are keys in place of strings, in the items or in the requests."""
        if self.schema.item.id_type is not IdType.STRING:
            return False
        shown = pq.read_schema(self.path / f"{LogFile.REQUESTS}.parquet").field("items").type
        is_list = pa.types.is_list(shown) or pa.types.is_large_list(shown)
        return bool(
            pa.types.is_integer(self.items_table["item_id"].type) or (is_list and pa.types.is_integer(shown.value_type))
        )

    def _refuse_repeated(self, name: str, file: str, column: str, expected: str) -> None:
        """Raise `LogError` if a file of 64-bit hashes holds one twice; sorts in place, in the file."""
        hashes = self.arrays.mapped(name, np.int64, mode="r+")
        hashes.sort()
        starts = range(0, len(hashes), SORT_ROWS)
        repeated = sum(int((np.diff(hashes[start : start + SORT_ROWS + 1]) == 0).sum()) for start in starts)
        (self.arrays.folder / name).unlink(missing_ok=True)
        if repeated:
            raise LogError(self.path / file, f"column {column!r}", expected, f"{repeated:,} repeated")
