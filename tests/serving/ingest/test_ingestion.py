"""Events from a Redis Stream: stored once however often they come, never lost, and bad ones set aside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import redis
from store_fixtures import SCHEMA, until

from kunlun.v1 import events_pb2, types_pb2
from loadtest.store_process import StoreProcess, store_process
from serving.core.errors import StoreUnavailable
from serving.core.types import RecordedEvents, UserEvent
from serving.ingest.ingestion import Ingestion
from serving.ingest.redis_stream import RedisStreamSource
from serving.protocol.event_messages import EventMessages
from serving.store.open import open_store
from serving.store.redis_store import RedisStore

NO_ITEMS = np.empty(0, np.int64)
STREAM, GROUP = "events", "kunlun"


class Counts:
    """What ingestion reports."""

    stored = duplicates = rejected = 0
    lag = -1

    def events(self, stored: int, duplicates: int) -> None:
        self.stored += stored
        self.duplicates += duplicates

    def rejected_entries(self, count: int) -> None:
        self.rejected += count

    def ingest_lag(self, entries: int) -> None:
        self.lag = entries


class Core:
    """Stores; fails `failures` times after having stored."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.failures = 0

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        recorded = await self._store.record_events(events)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("store: the answer is lost")
        return recorded


def message(event_id: str, user: str, item: int, kind: str = "click") -> bytes:
    event = events_pb2.Event(
        event_id=event_id, user_id=user, type=kind, item=types_pb2.ItemIds(ids=[item]), time_ms=1000 + item
    )
    return event.SerializeToString()


@pytest.fixture
def server(tmp_path: Path):
    with store_process(tmp_path) as process:
        yield process


def play(
    server: StoreProcess,
    scenario: Callable[[redis.Redis, RedisStore, Core, Counts, Callable[[str], Ingestion]], Awaitable[None]],
) -> None:
    async def main() -> None:
        store, counts = await open_store(server.url, SCHEMA), Counts()
        core, client = Core(store), redis.Redis.from_url(server.url)
        sources = []

        def ingestion(consumer: str) -> Ingestion:
            source = RedisStreamSource(server.url, STREAM, GROUP, consumer=consumer, timeout_s=1.0)
            sources.append(source)
            return Ingestion(source, EventMessages(SCHEMA), core, counts)

        await scenario(client, store, core, counts, ingestion)
        for source in sources:
            await source.close()
        await store.close()
        client.close()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WAIT_S", 0.05), ("PAUSE_S", 0.05), ("LAG_EVERY_S", 0.05)):
        monkeypatch.setattr(f"serving.ingest.ingestion.{name}", value)


def test_entries_are_stored_and_bad_ones_set_aside_with_the_reason(server: StoreProcess) -> None:
    async def scenario(client, store, core, counts, ingestion) -> None:
        reader = ingestion("a")
        await reader.step()
        for number in range(5):
            client.xadd(STREAM, {"e": message(f"e{number}", "ann", number)})
        client.xadd(STREAM, {"e": b"\xff\xff"})
        client.xadd(STREAM, {"other": b"x"})
        client.xadd(STREAM, {"e": message("x", "ann", 1, "swim")})
        assert await reader.step() == 8
        read = await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        assert read.histories["click"]["item"].tolist() == [0, 1, 2, 3, 4]
        assert (counts.stored, counts.duplicates, counts.rejected) == (5, 0, 3)
        reasons = [fields[b"reason"].decode() for _, fields in client.xrange(f"{STREAM}:rejected")]
        assert any("event.type: expected a declared event type" in reason for reason in reasons), reasons
        assert any("e: expected a serialized kunlun.v1.Event, found no such field" in reason for reason in reasons)
        assert len(reasons) == 3
        assert client.xpending(STREAM, GROUP)["pending"] == 0

    play(server, scenario)


def test_what_was_stored_and_not_acknowledged_comes_again_without_effect(server: StoreProcess) -> None:
    async def scenario(client, store, core, counts, ingestion) -> None:
        for number in range(3):
            client.xadd(STREAM, {"e": message(f"e{number}", "ann", number)})
        core.failures = 1
        crashed = ingestion("a")
        with pytest.raises(StoreUnavailable):
            await crashed.step()
        assert client.xpending(STREAM, GROUP)["pending"] == 3
        assert await ingestion("a").step() == 3, "the same reader, started again"
        assert (counts.stored, counts.duplicates) == (0, 3)
        read = await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        assert read.histories["click"]["item"].tolist() == [0, 1, 2]
        assert client.xpending(STREAM, GROUP)["pending"] == 0

    play(server, scenario)


def test_entries_of_a_vanished_reader_are_taken_over(server: StoreProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.ingest.redis_stream.CLAIM_AFTER_S", 0.1)

    async def scenario(client, store, core, counts, ingestion) -> None:
        client.xadd(STREAM, {"e": message("e", "ann", 1)})
        core.failures = 1
        with pytest.raises(StoreUnavailable):
            await ingestion("gone").step()
        other = ingestion("other")
        assert await other.step() == 0, "not at once: the first reader may still be alive"
        await asyncio.sleep(0.15)
        assert await other.step() == 1
        assert client.xpending(STREAM, GROUP)["pending"] == 0

    play(server, scenario)


def test_running_it_survives_the_store_and_reports_its_lag(server: StoreProcess) -> None:
    async def scenario(client, store, core, counts, ingestion) -> None:
        reader = ingestion("a")
        running = asyncio.create_task(reader.run())
        other = asyncio.create_task(ingestion("b").run())
        for number in range(50):
            client.xadd(STREAM, {"e": message(f"e{number}", f"u{number % 5}", number)})
        await until(lambda: counts.stored == 50, 20.0)
        server.kill()
        await asyncio.sleep(0.3)
        server.start()
        fresh = redis.Redis.from_url(server.url)
        for number in range(50, 60):
            fresh.xadd(STREAM, {"e": message(f"e{number}", f"u{number % 5}", number)})
        await until(lambda: counts.stored == 60 and counts.lag == 0, 20.0)
        for task in (running, other):
            task.cancel()
        await asyncio.gather(running, other, return_exceptions=True)
        items = []
        for user in range(5):
            items += (await store.read_rank_inputs(f"u{user}", NO_ITEMS, 1.0)).histories["click"]["item"].tolist()
        assert sorted(items) == list(range(60))
        fresh.close()

    play(server, scenario)
