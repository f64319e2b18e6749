"""Reads the outcome stream and the served log of a store and writes the canonical log that they join to.

Called by `kunlun log export`. Streams are read page by page from their beginning, in the store's own order; nothing is
changed in the store. Cost: what is exported is held in memory, the rest is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from model.config import ConfigError
from model.data.canonical import check_output, write_log
from model.schema import Schema
from serving.store.keys import served_key
from serving.store.redis_store import RedisStore
from serving.training_log.join import REASON_TEXT, ExportOptions, ExportReport, TrainingLog
from serving.training_log.served_log import ServedEntry

OUTCOME_FIELD, SERVED_FIELD = b"o", b"s"
OUTCOMES_PER_PAGE, ENTRIES_PER_PAGE = 2_000, 200
Progress = Callable[[int, int], None]
"""Hears how many stream entries have been read, of how many."""


async def export_log(
    store: RedisStore, schema: Schema, options: ExportOptions, output: Path, progress: Progress = lambda done, total: None
) -> ExportReport:
    """Write the log at `output` and say what is in it; options the store knows better (`forgotten`, …) are filled in.

    Raises `StoreUnavailable`, and `ConfigError` when `output` holds something else or no list can be exported.
    """
    check_output(output)
    outcomes, served = store.keys.outcomes, store.keys.served
    lengths = await store.execute([("XLEN", outcomes), ("XLEN", served)], "read the served log")
    total, done = sum(lengths), 0
    options = dataclasses.replace(
        options, forgotten=await store.forgotten_users(), outcomes_from_ms=await _trimmed_before(store, outcomes, lengths[0])
    )
    log = TrainingLog(schema, options)
    async for page in _pages(store, outcomes, OUTCOMES_PER_PAGE, OUTCOME_FIELD):
        for _, data in page:
            log.add_outcome(data)
        done += len(page)
        progress(min(done, total), total)
    async for page in _pages(store, served, ENTRIES_PER_PAGE, SERVED_FIELD):
        entries = [(identity, entry) for identity, data in page if (entry := log.read_entry(data)) is not None]
        notes = await _notes(store, entries)
        for (_, entry), note in zip(entries, notes, strict=True):
            log.add(entry, is_noted=note is not None)
        done += len(page)
        progress(min(done, total), total)
    tables, report = log.tables(), log.report
    if not tables:
        reasons = "; ".join(f"{count:,}: {REASON_TEXT[reason]}" for reason, count in report.left_out.items())
        raise ConfigError(f"served log: expected lists to export, found none among {report.served:,} ({reasons or 'empty'})")
    write_log(output, schema, tables, _info(report, options))
    return report


def _info(report: ExportReport, options: ExportOptions) -> dict[str, Any]:
    return {
        "source": {
            "kind": "served",
            "since_ms": options.since_ms,
            "until_ms": options.until_ms,
            "attribution_window_ms": options.window_ms,
            "include_immature": options.include_immature,
            "versions": dict(report.versions),
        },
        "counts": {
            "requests": report.exported,
            "impressions": report.examples,
            "users": report.users,
            "items": report.items,
            "events": report.events,
            "positives": dict(report.positives),
        },
        "negative_rate": options.negative_rate,
        "left_out": dict(report.left_out),
        "changed_features": report.changed_features,
        "rejected": {},
        "notes": {"moved_arrivals": report.moved_arrivals, "labels_not_shown": report.labels_not_shown},
    }


async def _notes(store: RedisStore, entries: Sequence[tuple[bytes, ServedEntry]]) -> list[Any]:
    """What each entry's user has noted of it; None for one that was written without a note, or whose user was deleted."""
    commands = [("ZSCORE", served_key(store.keys.tag(entry.user_id)), identity) for identity, entry in entries]
    return await store.execute(commands, "read the served log") if commands else []


async def _pages(store: RedisStore, key: str, count: int, field: bytes) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """Ids of a stream's entries and what their `field` holds, oldest first, up to `count` at a time."""
    start = "-"
    while True:
        (page,) = await store.execute([("XRANGE", key, start, "+", "COUNT", count)], "read the served log")
        if not page:
            return
        found = ((identity, dict(zip(fields[::2], fields[1::2], strict=True))) for identity, fields in page)
        yield [(identity, fields.get(field, b"")) for identity, fields in found]
        start = f"({page[-1][0].decode()}"


async def _trimmed_before(store: RedisStore, key: str, length: int) -> int:
    """Before when (ms) outcomes have been lost to the bound of their stream; 0: none have."""
    if not length:
        return 0
    (reply,) = await store.execute([("XINFO", "STREAM", key)], "read the served log")
    facts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    if int(facts[b"entries-added"]) <= int(facts[b"length"]):
        return 0
    return int(facts[b"first-entry"][0].partition(b"-")[0])
