"""Bulk loading of a canonical log's tables into the store: item features, user features, histories.

Reads Parquet in batches, so files may exceed memory. Rows that do not fit the schema are refused and
counted by reason; the rest is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.data.request_log import event_records, records_of
from model.records import ARRIVAL_MS, FieldError, keys
from model.schema import Schema
from serving.core.types import UserEvent
from serving.store.redis_store import RedisStore

BATCH_ROWS = 20_000
Report = Callable[[int], None]


@dataclass
class LoadReport:
    """Rows stored and refused."""

    loaded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


async def load_items(store: RedisStore, schema: Schema, path: Path, progress: Report = lambda _: None) -> LoadReport:
    """Item features from a Parquet file with `item_id` and one column per item feature."""
    report = LoadReport()
    for table in _batches(path, "item_id", report):
        try:
            item_keys = keys(table["item_id"].to_pylist(), schema.item.id_type, schema.hash, f"{path.name}: item_id")
            records = records_of(table, schema.item_features, schema, path.name)
        except FieldError as error:
            report.rejected[str(error)] += len(table)
            continue
        await store.put_items(item_keys, records)
        report.loaded += len(table)
        progress(len(table))
    return report


async def load_users(store: RedisStore, schema: Schema, path: Path, progress: Report = lambda _: None) -> LoadReport:
    """User features from a Parquet file with `user_id` and one column per user feature."""
    report = LoadReport()
    if not schema.user:
        return report
    for table in _batches(path, "user_id", report):
        try:
            records = records_of(table, schema.user, schema, path.name)
        except FieldError as error:
            report.rejected[str(error)] += len(table)
            continue
        await store.put_users(table["user_id"].to_pylist(), records)
        report.loaded += len(table)
        progress(len(table))
    return report


async def load_events(store: RedisStore, schema: Schema, path: Path, progress: Report = lambda _: None) -> LoadReport:
    """Histories from an events file, in arrival order; events stored before are recognised by their id."""
    report = LoadReport()
    table = pq.read_table(path)
    table = table.take(pa.array(np.argsort(table["arrival_ms"].to_numpy(), kind="stable")))
    for start in range(0, len(table), 2_000):
        part = table.slice(start, 2_000)
        events: list[tuple[int, UserEvent]] = []
        for declared in schema.events:
            rows = np.flatnonzero(pc.equal(part["type"], declared.name).to_numpy(zero_copy_only=False))
            own = part.take(pa.array(rows))
            records = event_records(own, declared, schema)
            identities = zip(own["event_id"].to_pylist(), own["user_id"].to_pylist(), strict=True)
            for i, (event_id, user_id) in enumerate(identities):
                events.append((int(records[ARRIVAL_MS][i]), UserEvent(event_id, user_id, declared.name, records[i : i + 1])))
        if unknown := len(part) - len(events):
            report.rejected["event type that the schema does not declare"] += unknown
        events.sort(key=lambda pair: pair[0])
        await store.backfill_events([event for _, event in events])
        report.loaded += len(events)
        progress(len(part))
    return report


def rows_in(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pq.ParquetFile(path).metadata.num_rows)


def _batches(path: Path, id_column: str, report: LoadReport) -> Iterator[pa.Table]:
    """Tables of at most BATCH_ROWS rows; rows without an id are refused."""
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
        table = pa.Table.from_batches([batch])
        if id_column not in table.column_names:
            raise FieldError(f"{path.name}: {id_column}", "a column of ids", f"columns {', '.join(table.column_names)}")
        present = pc.is_valid(table[id_column])
        if missing := len(table) - pc.sum(present).as_py():
            report.rejected[f"{id_column} is null"] += missing
            table = table.filter(present)
        yield table
