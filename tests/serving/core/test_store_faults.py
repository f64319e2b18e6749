"""Faults of a real store under a ranker: every Rank is answered, the rung says how, and nothing unstored is acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis
from rank_fixtures import Recorder, click, request

from loadtest.store_process import StoreProcess, store_process
from model.artifact import Artifact
from serving.core.errors import StoreUnavailable
from serving.core.options import CoreOptions
from serving.core.ranker import Ranker
from serving.core.types import Rung
from serving.engines.open import open_engine
from serving.store.open import open_store
from serving.store.redis_store import RedisOptions, RedisStore

OPTIONS = CoreOptions(max_batch_users=1, store_timeout_s=0.2, store_retry_s=0.1)
WITHOUT = {Rung.STALE_STATE, Rung.SHORT_HISTORY}
ITEMS = np.arange(1, 9)
NO_ITEMS = np.empty(0, np.int64)
Act = Callable[[StoreProcess, RedisStore], object]


@dataclass(frozen=True)
class Fault:
    """How it begins and ends, which rungs a Rank may have meanwhile, and whether events can be stored."""

    name: str
    begin: Act
    end: Act
    rungs: set[Rung]
    stores: bool = False


def command(*arguments: object) -> Act:
    def send(server: StoreProcess, _: RedisStore) -> None:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command(*arguments)

    return send


def spoil(server: StoreProcess, store: RedisStore) -> None:
    key = store.keys.history(store.keys.tag("ann"), "click")
    with redis.Redis.from_url(server.url) as client:
        client.rename(key, f"{key}:aside")
        client.rpush(key, "a list")


def mend(server: StoreProcess, store: RedisStore) -> None:
    key = store.keys.history(store.keys.tag("ann"), "click")
    with redis.Redis.from_url(server.url) as client:
        client.rename(f"{key}:aside", key)


FAULTS = [
    Fault("killed", lambda s, _: s.kill(), lambda s, _: s.start(), WITHOUT),
    Fault("frozen", lambda s, _: s.freeze(), lambda s, _: s.thaw(), WITHOUT),
    Fault("slow to write", command("CLIENT", "PAUSE", 60_000, "WRITE"), command("CLIENT", "UNPAUSE"), {Rung.FULL}),
    Fault("full", command("CONFIG", "SET", "maxmemory", 1), command("CONFIG", "SET", "maxmemory", 0), {Rung.FULL}),
    Fault("read-only", command("REPLICAOF", "127.0.0.1", 1), command("REPLICAOF", "NO", "ONE"), {Rung.FULL}),
    Fault("reset", command("CLIENT", "KILL", "TYPE", "normal"), lambda *_: None, {Rung.FULL}, stores=True),
    Fault("wrong data", spoil, mend, {Rung.FULL}),
]


def test_ranks_go_on_through_every_fault_and_nothing_unstored_is_acknowledged(
    artifact: Artifact, engine_cache: Path, tmp_path: Path
) -> None:
    acknowledged: list[int] = []

    async def record(ranker: Ranker, item: int) -> bool:
        try:
            await ranker.record_events([click(artifact.schema, "ann", item, f"event {item}")])
        except StoreUnavailable:
            return False
        acknowledged.append(item)
        return True

    async def suffer(fault: Fault, number: int, ranker: Ranker, server: StoreProcess, store: RedisStore) -> None:
        fault.begin(server, store)
        for user in ("ann", "bob", "ann", f"somebody new {number}"):
            result = await ranker.rank(request(artifact.schema, user, ITEMS, budget_s=10.0))
            assert result.rung in fault.rungs, (fault.name, user, result.rung, result.rung_reason)
            assert len(result.order) == len(ITEMS)
            assert np.isfinite(result.probabilities).all()
        assert await record(ranker, 100 + number) is fault.stores, fault.name
        fault.end(server, store)
        deadline = time.monotonic() + 20
        while (await ranker.rank(request(artifact.schema, "ann", ITEMS, budget_s=10.0))).rung is not Rung.FULL:
            assert time.monotonic() < deadline, f"{fault.name}: not served in full again"
            await asyncio.sleep(0.01)
        assert await record(ranker, 200 + number), f"{fault.name}: not stored again"

    async def scenario(server: StoreProcess) -> None:
        engine = open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
        store = await open_store(server.url, artifact.schema, options=RedisOptions(timeout_s=0.5))
        ranker = Ranker(artifact, engine, store, OPTIONS, Recorder())
        await ranker.start()
        try:
            assert await record(ranker, 1)
            await ranker.rank(request(artifact.schema, "ann", ITEMS))
            for number, fault in enumerate(FAULTS):
                await suffer(fault, number, ranker, server, store)
            found = (await store.read_rank_inputs("ann", NO_ITEMS, 5.0)).histories["click"]["item"].tolist()
            assert len(found) == len(set(found)), "an event is there twice"
            assert set(acknowledged) <= set(found), "an acknowledged event is lost"
        finally:
            await ranker.close()
            await store.close()

    with store_process(tmp_path) as server:
        asyncio.run(scenario(server))
