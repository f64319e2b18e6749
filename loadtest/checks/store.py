"""`make store-check`: the promises of the feature store beside the scoreboard, each measured on a real embedded server.

Hit rate of the near cache against the prediction for Zipf's law, staleness of item features, read latency and bytes
per user by length of history, cost of an append as histories grow, loading of item features, and skew between offline
preparation and the online path on a whole log. The last line is one JSON object with `ok`, the figures and their targets.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loadtest.checks.check import Check, run_checks
from loadtest.processes import run_stage
from model.cli.console import note
from model.config import parse_yaml
from model.data.request_log import load_request_log
from model.history import visible_history
from model.records import ARRIVAL_MS, ITEM, TIME_MS, event_dtype, feature_dtype, missing_records
from model.schema import Schema
from serving.core.types import UserEvent
from serving.store.embedded import EmbeddedValkey
from serving.store.load import load_events, load_items, load_users
from serving.store.near_cache import OVERHEAD_BYTES, NearCache
from serving.store.redis_store import RedisStore
from serving.store.store_changes import StoreChanges

SEED = 20_261_125
NO_ITEMS = np.empty(0, np.int64)
LENGTHS = (100, 1_000, 10_000)
SCHEMA = """
name: check
tables: {{item: {{width: 4}}, genre: {{width: 4}}}}
item: {{id_type: int64, table: item}}
user: [{{name: age, kind: numeric}}]
item_features: [{{name: genres, kind: multi, table: genre, max_values: 3}}, {{name: price, kind: numeric}}]
events: [{{name: click, cap: {cap}, attributes: [{{name: dwell, kind: numeric}}]}}]
tasks: [{{name: click}}]
value: p_click
"""


def hit_rate(exponent: float = 1.0, items: int = 20_000, share: float = 0.1, lookups: int = 400_000) -> Check:
    """Measured against Che's approximation of an LRU cache under independent Zipf requests."""
    weights = np.arange(1, items + 1) ** -exponent
    p = weights / weights.sum()
    dtype = np.dtype([("price", "<f4")])
    cache = NearCache(dtype, int(share * items) * (dtype.itemsize + OVERHEAD_BYTES), ttl_s=1e9)
    capacity = cache.capacity
    rng, rows, hits = np.random.default_rng(SEED), np.zeros(100, dtype), 0
    half = lookups // 2
    for start in range(0, lookups, 100):
        keys = rng.choice(items, 100, p=p)
        _, absent, _ = cache.lookup(keys)
        cache.insert(keys[absent], rows[absent], cache.mark())
        hits += int((~absent).sum()) if start >= half else 0
    measured, predicted = hits / (lookups - half), _che_hit_rate(p, capacity)
    figures = {"measured": round(measured, 4), "predicted": round(predicted, 4), "items": items, "cached": capacity}
    return Check("near_cache_hit_rate", figures, "within 0.02 of the prediction", abs(measured - predicted) <= 0.02)


def _che_hit_rate(p: NDArray[np.float64], capacity: int) -> float:
    """Hit rate of LRU: the characteristic time T solves Σ (1 − e^(−pT)) = capacity."""
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-p * middle)).sum() < capacity else (low, middle)
    return float((p * (1 - np.exp(-p * low))).sum())


async def reads_and_bytes(users: int = 20, reads: int = 400) -> Check:
    """Latency of a whole read and bytes per user, by length of history."""
    figures: dict[str, Any] = {}
    for length in LENGTHS:
        schema = parse_yaml(Schema, SCHEMA.format(cap=length))
        async with _store(schema) as store:
            for user in range(users):
                await _fill(store, schema, f"u{user}", length)
            seconds = []
            for number in range(reads):
                began = time.perf_counter()
                inputs = await store.read_rank_inputs(f"u{number % users}", NO_ITEMS, 10.0)
                seconds.append(time.perf_counter() - began)
                assert len(inputs.histories["click"]) == schema.event("click").read_window or length < 32
            tag = store.keys.tag("u0")
            (keys,) = await store.nodes.on_every_node("KEYS", f"{tag}*")
            used = sum([(await store.nodes.exchange([("MEMORY", "USAGE", key)]))[0] for key in keys])
            figures[str(length)] = {
                "read_p50_ms": round(1e3 * float(np.median(seconds)), 3),
                "read_p99_ms": round(1e3 * float(np.quantile(seconds, 0.99)), 3),
                "bytes_per_user": used,
                "gb_per_million_users": round(used / 1e3, 2),
            }
            note(f"histories of {length}: {figures[str(length)]}")
    worst = figures[str(LENGTHS[-1])]["read_p99_ms"]
    return Check("read_latency_and_bytes", figures, "p99 of 10,000 events ≤ 20 ms", worst <= 20)


async def append_cost(appends: int = 20_000, users: int = 100) -> Check:
    """Events per second, appended one per user and call of 100 users, on short histories and on full long ones."""
    rates = {}
    for filled in (LENGTHS[0], LENGTHS[-1]):
        schema = parse_yaml(Schema, SCHEMA.format(cap=LENGTHS[-1]))
        async with _store(schema) as store:
            for user in range(users):
                await _fill(store, schema, f"u{user}", filled)
            began = time.perf_counter()
            for number in range(appends // users):
                await store.record_events([_event(schema, f"u{user}", f"a{number}", number) for user in range(users)])
            rates[filled] = appends / (time.perf_counter() - began)
            note(f"appends on histories of {filled}: {rates[filled]:,.0f} events/s")
    ratio = rates[LENGTHS[0]] / rates[LENGTHS[-1]]
    figures = {f"events_per_s_at_{length}": round(rate) for length, rate in rates.items()} | {"cost_ratio": round(ratio, 2)}
    return Check("append_cost", figures, "an append to 10,000 events costs ≤ 1.5 × one to 100", ratio <= 1.5)


class _Hears:
    """Notes when a near cache would forget an item."""

    def __init__(self) -> None:
        self.is_told = asyncio.Event()
        self.heard: dict[int, asyncio.Future[float]] = {}

    def items_changed(self, keys: NDArray[np.int64] | None) -> None:
        for key in () if keys is None else keys.tolist():
            if (future := self.heard.get(key)) is not None and not future.done():
                future.set_result(time.perf_counter())

    def users_changed(self, users: Set[str] | None) -> None:
        """Counts for nothing here."""

    def features_doubted(self) -> None:
        """From here on it hears of every change."""
        self.is_told.set()

    def users_forgotten(self, users: Set[str]) -> None:
        """Counts for nothing here."""


async def staleness(writes: int = 500) -> Check:
    """How long after a write of item features has begun a replica's near cache may still serve the old ones."""
    schema, listener = parse_yaml(Schema, SCHEMA.format(cap=100)), _Hears()
    seconds = []
    async with _store(schema) as store:
        changes = StoreChanges(store, listener)
        listening = asyncio.create_task(changes.run())
        await listener.is_told.wait()
        record = np.zeros(1, feature_dtype(schema.item_features))
        for key in range(writes):
            listener.heard[key] = asyncio.get_running_loop().create_future()
            began = time.perf_counter()
            await store.put_items(np.array([key]), record)
            seconds.append(await asyncio.wait_for(listener.heard[key], 10) - began)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    p50, p99 = (round(1e3 * float(np.quantile(seconds, q)), 3) for q in (0.5, 0.99))
    return Check("item_staleness", {"p50_ms": p50, "p99_ms": p99, "writes": writes}, "p99 ≤ 100 ms", p99 <= 100)


async def load_rate(rows: int = 200_000) -> Check:
    """Item features from Parquet, as `kunlun load` does it."""
    schema, rng = parse_yaml(Schema, SCHEMA.format(cap=100)), np.random.default_rng(SEED)
    genres = rng.integers(0, 50, (rows, 3)).astype(str)
    table = pa.table({"item_id": np.arange(rows), "genres": genres.tolist(), "price": rng.uniform(1, 9, rows)})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "items.parquet")
        pq.write_table(table, path)
        async with _store(schema) as store:
            began = time.perf_counter()
            report = await load_items(store, schema, path)
            rate = report.loaded / (time.perf_counter() - began)
    assert report.loaded == rows, report.rejected
    return Check("load_rate", {"rows_per_s": round(rate)}, "≥ 50,000 rows/s", rate >= 50_000)


async def skew(data: Path | None, requests: int = 300) -> Check:
    """Rows that differ between offline preparation and the store, at moments of the log; a tenth of the events arrives late."""
    with tempfile.TemporaryDirectory() as directory:
        log_dir = Path(directory, "log")
        source = ["--source", "synthetic", "--seed", "1"] if data is None else ["--source", "metarank", "--input", str(data)]
        run_stage(["prepare", *source, "--output", str(log_dir)])
        _delay_arrivals(log_dir / "events.parquet")
        log = load_request_log(log_dir)
        schema = log.schema
        events = pq.read_table(log_dir / "events.parquet").sort_by("arrival_ms")
        arrival = events["arrival_ms"].to_numpy()
        chosen = np.sort(np.random.default_rng(SEED).choice(len(log), min(requests, len(log)), replace=False))
        compared = differing = stored = 0
        async with _store(schema) as store:
            await load_items(store, schema, log_dir / "items.parquet")
            await load_users(store, schema, log_dir / "users.parquet")
            for number in chosen.tolist():
                now = int(log.time_ms[number])
                due = int(np.searchsorted(arrival, now, side="left"))
                if due > stored:
                    pq.write_table(events.slice(stored, due - stored), Path(directory, "part.parquet"))
                    await load_events(store, schema, Path(directory, "part.parquet"))
                    stored = due
                user, items = int(log.user_index[number]), log.item_index[log.shown(number)]
                online = await store.read_rank_inputs(log.user_ids[user], log.item_keys[items], 10.0)
                offline = log.histories(number)
                for event in schema.events:
                    seen = visible_history(online.histories[event.name], event, now)
                    compared += max(len(seen), len(offline[event.name]))
                    differing += _rows_that_differ(seen, offline[event.name])
                compared += len(items) + 1
                differing += _rows_that_differ(online.items, log.items[items])
                if schema.user:
                    seen = missing_records(log.users.dtype, 1) if online.user is None else online.user
                    differing += _rows_that_differ(seen, log.users[user : user + 1])
    figures = {
        "rows": compared,
        "differing": differing,
        "requests": len(chosen),
        "log": "synthetic" if data is None else data.name,
    }
    return Check("skew", figures, "0 rows differ", differing == 0 and compared > 0)


def _delay_arrivals(path: Path) -> None:
    """A tenth of the events arrives up to two days after it happened."""
    rng, table = np.random.default_rng(SEED), pq.read_table(path)
    late = np.where(rng.random(len(table)) < 0.1, rng.integers(0, 2 * 86_400_000, len(table)), 0)
    at = table.column_names.index("arrival_ms")
    pq.write_table(table.set_column(at, "arrival_ms", pa.array(table["arrival_ms"].to_numpy() + late)), path)


def _rows_that_differ(online: NDArray[np.void], offline: NDArray[np.void]) -> int:
    if len(online) != len(offline):
        return max(len(online), len(offline))
    return sum(a.tobytes() != b.tobytes() for a, b in zip(online, offline, strict=True))


def _event(schema: Schema, user: str, event_id: str, number: int) -> UserEvent:
    record = np.zeros(1, event_dtype(schema.event("click")))
    record[ITEM], record[TIME_MS], record[ARRIVAL_MS] = number, 1_000 * number, 1_000 * number
    return UserEvent(event_id, user, "click", record)


async def _fill(store: RedisStore, schema: Schema, user: str, length: int) -> None:
    """`length` events and what is read beyond them for disorder."""
    whole = length + schema.event("click").read_window - schema.event("click").cap
    for start in range(0, whole, 1000):
        await store.backfill_events([_event(schema, user, f"f{n}", n) for n in range(start, min(start + 1000, whole))])


@asynccontextmanager
async def _store(schema: Schema) -> AsyncIterator[RedisStore]:
    server = EmbeddedValkey()
    store = RedisStore(server.url, schema)
    try:
        yield store
    finally:
        await store.close()
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.store", description=__doc__)
    parser.add_argument("--data", type=Path, help="log in Metarank's format for the skew check (default: synthetic)")
    arguments = parser.parse_args()
    return run_checks(
        {
            "near_cache_hit_rate": hit_rate,
            "item_staleness": lambda: asyncio.run(staleness()),
            "read_latency_and_bytes": lambda: asyncio.run(reads_and_bytes()),
            "append_cost": lambda: asyncio.run(append_cost()),
            "load_rate": lambda: asyncio.run(load_rate()),
            "skew": lambda: asyncio.run(skew(arguments.data)),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
