"""Rows of the store: killed, restarted and frozen under load (S10)."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kunlun.client import Client, Event, KunlunError
from loadtest.bench import Bench
from loadtest.scoreboard.figure import Figure, Row
from loadtest.store_process import StoreProcess, store_process
from model.artifact import open_artifact
from model.hashing import string_keys
from model.records import ITEM
from model.schema import Schema
from serving.config import ServerConfig, artifact_path
from serving.store.redis_store import RedisStore

SEED = 20_261_125
USERS, RANKS_PER_S, WRITES_PER_S = 400, 50.0, 100.0
DOWN_S, FROZEN_S, CALM_S = 2.0, 2.0, 3.0
RECOVERY_S = 1.0
"""A Rank that is sent this long after the store's return must be answered from it again."""


@dataclass
class Journal:
    """What happened: the events that were acknowledged and those that were sent, by user; Ranks by rung; failures."""

    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    sent: list[tuple[str, str]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    rungs: Counter[str] = field(default_factory=Counter)
    degraded: list[tuple[float, float]] = field(default_factory=list)
    refused_writes: int = 0


def store_faults(bench: Bench) -> Figure:
    """S10: Ranks and events while the store is killed twice, restarted and frozen; then every event is looked for."""
    bench.build()
    journal, stop = Journal(), threading.Event()
    outages: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="kunlun-s10-") as directory, store_process(Path(directory)) as store:
        with bench.server({"store": store.url, "core": {"encode_on_write": True}}) as server:
            threads = [
                threading.Thread(target=work, args=(server.address, journal, stop)) for work in (_rank, _write, _write_again)
            ]
            for thread in threads:
                thread.start()
            _torment(store, outages)
            stop.set()
            for thread in threads:
                thread.join()
        schema = open_artifact(artifact_path(ServerConfig(repository=Path(bench.pipeline.models)))).schema
        stored = asyncio.run(_found(store.url, schema, journal))
    lost = sum(stored[user, item] == 0 for user, item in journal.acknowledged)
    doubled = sum(count > 1 for count in stored.values())
    slow = sum(not any(down <= at <= up + RECOVERY_S for down, up in outages) for at, _ in journal.degraded)
    failed = sum(journal.failed.values())
    return Figure(
        failed + lost + doubled,
        failed == lost == doubled == slow == 0,
        {
            "ranks": sum(journal.rungs.values()),
            "failed_ranks": dict(journal.failed),
            "rungs": dict(journal.rungs),
            "degraded_outside_outages": slow,
            "acknowledged": len(journal.acknowledged),
            "refused_writes": journal.refused_writes,
            "lost": lost,
            "doubled": doubled,
            "kills": 2,
            "freezes": 1,
            "seed": SEED,
        },
    )


def _torment(store: StoreProcess, outages: list[tuple[float, float]]) -> None:
    """Calm, killed and restarted, calm, frozen, calm, killed and restarted, calm."""
    for fault in ("kill", "freeze", "kill"):
        time.sleep(CALM_S)
        down = time.monotonic()
        if fault == "kill":
            store.kill()
            time.sleep(DOWN_S)
            store.start()
        else:
            store.freeze()
            time.sleep(FROZEN_S)
            store.thaw()
        outages.append((down, time.monotonic()))
    time.sleep(CALM_S)


def _rank(address: str, journal: Journal, stop: threading.Event) -> None:
    """Ranks at a steady rate, one attempt each: every one of them must be answered."""
    rng = np.random.default_rng(SEED)
    with Client(address, timeout_s=2.0, retries=0) as client:
        for _ in _paced(RANKS_PER_S, stop):
            began = time.monotonic()
            items = [f"i{i}" for i in rng.choice(100, 20, replace=False)]
            try:
                reply = client.rank(f"s10-{rng.integers(USERS)}", items, context={"surface": "surface-0"})
            except KunlunError as error:
                journal.failed[error.code] += 1
                continue
            journal.rungs[reply.rung] += 1
            if reply.rung != "FULL":
                journal.degraded.append((began, time.monotonic()))


def _write(address: str, journal: Journal, stop: threading.Event) -> None:
    """Events, one attempt each; every one names an item of its own, by which it is found again."""
    rng = np.random.default_rng(SEED + 1)
    with Client(address, timeout_s=2.0, retries=0) as client:
        for number, _ in enumerate(_paced(WRITES_PER_S, stop)):
            _record(client, journal, f"s10-{rng.integers(USERS)}", f"once-{number}")


def _write_again(address: str, journal: Journal, stop: threading.Event) -> None:
    """The same with the client's own repetitions, which must not store anything twice."""
    rng = np.random.default_rng(SEED + 2)
    with Client(address, timeout_s=2.0, retries=5) as client:
        for number, _ in enumerate(_paced(WRITES_PER_S, stop)):
            _record(client, journal, f"s10-{rng.integers(USERS)}", f"again-{number}")


def _record(client: Client, journal: Journal, user: str, item: str) -> None:
    journal.sent.append((user, item))
    try:
        client.record_events([Event(user, "click", item, event_id=f"event-{item}")])
    except KunlunError:
        journal.refused_writes += 1
    else:
        journal.acknowledged.append((user, item))


def _paced(rate: float, stop: threading.Event) -> Iterator[None]:
    """Yields at `rate` per second until stopped; never catches up on what an outage held back."""
    while not stop.is_set():
        due = time.monotonic() + 1 / rate
        yield
        time.sleep(max(0.0, due - time.monotonic()))


async def _found(url: str, schema: Schema, journal: Journal) -> Counter[tuple[str, str]]:
    """How often every event that was sent is in the store, read past all caches."""
    store, found = RedisStore(url, schema), Counter[tuple[str, str]]()
    items: dict[str, list[str]] = {}
    for user, item in journal.sent:
        items.setdefault(user, []).append(item)
    for user, own in items.items():
        inputs = await store.read_rank_inputs(user, np.empty(0, np.int64), 10.0)
        seen = Counter(inputs.histories["click"][ITEM].tolist())
        for item, key in zip(own, string_keys(own, schema.hash).tolist(), strict=True):
            found[user, item] = seen[key]
    await store.close()
    return found


STORE = (
    Row("S10", "store killed and frozen under load: failed Ranks + acknowledged events lost or doubled", "0", store_faults),
)
