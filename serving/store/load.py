"""Bulk loading of a canonical log's tables into the store: item features, user features, histories.

Items and users are read in batches, so their files may exceed memory; events are sorted by arrival,
so theirs may not. Rows that do not fit the schema are refused and counted by reason; the rest is
loaded. Loading the same files again changes nothing, and `skip` leaves out the rows that an interrupted
load has done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.data.arrow_columns import event_records, item_keys_of, records_of
from model.records import ARRIVAL_MS, FieldError, Records
from model.schema import Schema
from serving.core.types import UserEvent
from serving.store.redis_store import RedisStore

T = TypeVar("T")
BATCH_ROWS = 20_000
EVENT_ROWS = 2_000
EVENT_COLUMNS = ("event_id", "user_id", "type", "item_id", "time_ms", "arrival_ms")
STORED_BEFORE = "stored before, or older than the user's newest stored event"
Report = Callable[[int], None]


@dataclass
class LoadReport:
    """Rows stored, and rows refused by reason (with the first value found, not one reason for each)."""

    loaded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    _reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def refuse(self, error: FieldError) -> None:
        """Count one row that does not fit."""
        self.rejected[self._reasons.setdefault((error.field, error.expected), str(error))] += 1


async def load_items(
    store: RedisStore, schema: Schema, path: Path, progress: Report = lambda _: None, skip: int = 0
) -> LoadReport:
    """Item features from a Parquet file with `item_id` and one column per item feature."""
    report = LoadReport()

    def converted(table: pa.Table) -> tuple[NDArray[np.int64], Records]:
        item_keys = item_keys_of(table["item_id"], schema, f"{path.name}: item_id")
        return item_keys, records_of(table, schema.item_features, schema, path.name)

    for batch in _batches(path, skip):
        table = _complete(pa.Table.from_batches([batch]), path, ["item_id"], report)
        for part, (item_keys, records) in _fitting(table, converted, report):
            await store.put_items(item_keys, records)
            report.loaded += len(part)
        progress(len(batch))
    return report


async def load_users(
    store: RedisStore, schema: Schema, path: Path, progress: Report = lambda _: None, skip: int = 0
) -> LoadReport:
    """User features from a Parquet file with `user_id` and one column per user feature."""
    report = LoadReport()
    if not schema.user:
        return report
    for batch in _batches(path, skip):
        table = _complete(pa.Table.from_batches([batch]), path, ["user_id"], report)
        for part, records in _fitting(table, lambda rows: records_of(rows, schema.user, schema, path.name), report):
            await store.put_users(part["user_id"].to_pylist(), records)
            report.loaded += len(part)
        progress(len(batch))
    return report


async def load_events(
    store: RedisStore, schema: Schema, path: Path, progress: Report = lambda _: None, skip: int = 0
) -> LoadReport:
    """Histories from an events file, in arrival order.

    An event that arrived before the newest one stored for its user and type is not stored: a second
    load changes nothing, and a user with live events gets no older history, so load before traffic.
    """
    report = LoadReport()
    whole = pq.read_table(path)
    table = _complete(whole, path, EVENT_COLUMNS, report)
    if not skip:
        progress(len(whole) - len(table))
    table = table.take(pa.array(np.argsort(table["arrival_ms"].to_numpy(), kind="stable")))
    for start in range(max(0, skip - (len(whole) - len(table))), len(table), EVENT_ROWS):
        part = table.slice(start, EVENT_ROWS)
        events = _events(part, schema, report)
        recorded = await store.backfill_events(events)
        report.loaded += recorded.stored
        if recorded.duplicates:
            report.rejected[STORED_BEFORE] += recorded.duplicates
        progress(len(part))
    return report


def _events(table: pa.Table, schema: Schema, report: LoadReport) -> list[UserEvent]:
    """The rows that fit, of all types, in arrival order."""
    events: list[tuple[int, UserEvent]] = []
    declared_rows = 0
    for declared in schema.events:
        rows = np.flatnonzero(pc.equal(table["type"], declared.name).to_numpy(zero_copy_only=False))
        declared_rows += len(rows)
        own = table.take(pa.array(rows))
        for part, records in _fitting(own, lambda t, declared=declared: event_records(t, declared, schema), report):  # type: ignore[misc]
            identities = zip(part["event_id"].to_pylist(), part["user_id"].to_pylist(), strict=True)
            for i, (event_id, user_id) in enumerate(identities):
                events.append((int(records[ARRIVAL_MS][i]), UserEvent(event_id, user_id, declared.name, records[i : i + 1])))
    if unknown := len(table) - declared_rows:
        report.rejected["event type that the schema does not declare"] += unknown
    return [event for _, event in sorted(events, key=lambda pair: pair[0])]


def _batches(path: Path, skip: int) -> Iterator[pa.RecordBatch]:
    """The file's rows but the first `skip`."""
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
        left_out = min(skip, len(batch))
        skip -= left_out
        if left_out < len(batch):
            yield batch.slice(left_out)


def rows_in(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pq.ParquetFile(path).metadata.num_rows)


def _complete(table: pa.Table, path: Path, required: Sequence[str], report: LoadReport) -> pa.Table:
    """The rows with a value in every required column; the others are refused."""
    for name in required:
        if name not in table.column_names:
            raise FieldError(f"{path.name}: {name}", "a column", f"columns {', '.join(table.column_names)}")
        present = pc.is_valid(table[name])
        if missing := len(table) - (pc.sum(present).as_py() or 0):
            report.rejected[f"{name} is null"] += missing
            table = table.filter(present)
    return table


def _fitting(table: pa.Table, convert: Callable[[pa.Table], T], report: LoadReport) -> Iterator[tuple[pa.Table, T]]:
    """The table as few parts with their conversion; halved around rows that do not fit, which are refused one by one."""
    if not len(table):
        return
    try:
        converted = convert(table)
    except FieldError as error:
        if len(table) == 1:
            report.refuse(error)
            return
        half = len(table) // 2
        yield from _fitting(table.slice(0, half), convert, report)
        yield from _fitting(table.slice(half), convert, report)
    else:
        yield table, converted
