"""Servers that refuse and connections that break: nothing is acknowledged that is not stored, no reply is mixed up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from store_fixtures import SCHEMA, event

from loadtest.store_process import StoreProcess, store_process
from serving.core.errors import StoreUnavailable
from serving.store.open import open_store
from serving.store.redis_store import RedisStore

NO_ITEMS = np.empty(0, np.int64)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreProcess]:
    with store_process(tmp_path) as process:
        yield process


def test_a_full_store_acknowledges_nothing_and_is_still_read(server: StoreProcess) -> None:
    async def scenario() -> None:
        client, store = redis.Redis.from_url(server.url), await open_store(server.url, SCHEMA)
        await store.record_events([event("e", "ann", 1, 1)])
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match=r"record events: .*used memory"):
            await store.record_events([event("f", "ann", 2, 2), event("g", "bob", 3, 3)])
        with pytest.raises(StoreUnavailable, match=r"append outcomes: .*used memory"):
            await store.append_outcomes([b"x"])
        assert (await store.read_rank_inputs("ann", NO_ITEMS, 1.0)).history_version == 1
        assert (await store.read_rank_inputs("bob", NO_ITEMS, 1.0)).history_version == 0
        client.config_set("maxmemory", 0)
        assert (await store.record_events([event("f", "ann", 2, 2)])).versions == {"ann": 2}
        await store.close()
        client.close()

    asyncio.run(scenario())


def test_a_replica_acknowledges_nothing_and_is_still_read(server: StoreProcess) -> None:
    async def scenario() -> None:
        client, store = redis.Redis.from_url(server.url), await open_store(server.url, SCHEMA)
        await store.record_events([event("e", "ann", 1, 1)])
        client.execute_command("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match=r"record events: .*read only replica"):
            await store.record_events([event("f", "ann", 2, 2)])
        assert (await store.read_rank_inputs("ann", NO_ITEMS, 1.0)).history_version == 1
        client.execute_command("REPLICAOF", "NO", "ONE")
        assert (await store.record_events([event("f", "ann", 2, 2)])).stored == 1
        await store.close()
        client.close()

    asyncio.run(scenario())


class Cutter:
    """A proxy in front of a store that drops a connection once it has passed on `bytes_left` bytes of replies."""

    def __init__(self, target: str, path: Path) -> None:
        self._target, self._path = target, path
        self.url = f"unix://{path}"
        self.bytes_left = 1 << 60
        self.cuts = 0

    async def __aenter__(self) -> Cutter:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_unix_connection(self._target)

        async def requests() -> None:
            while data := await reader.read(1 << 16):
                store_writer.write(data)

        task = asyncio.create_task(requests())
        try:
            while data := await store_reader.read(1 << 16):
                writer.write(data[: self.bytes_left])
                await writer.drain()
                if len(data) > self.bytes_left:
                    self.cuts += 1
                    self.bytes_left = 1 << 60
                    break
                self.bytes_left -= len(data)
        finally:
            task.cancel()
            writer.close()
            store_writer.close()


def test_a_connection_cut_in_the_middle_of_a_reply_is_repeated_and_mixes_nothing_up(
    server: StoreProcess, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with Cutter(server.url.removeprefix("unix://"), tmp_path / "p.sock") as cutter:
            store = await open_store(cutter.url, SCHEMA)
            users = {f"u{n}": n + 1 for n in range(8)}
            for user, count in users.items():
                await store.record_events([event(f"{user}-{i}", user, 100 * count + i, i) for i in range(count)])
            for cut in range(0, 400, 13):
                cutter.bytes_left = cut
                await asyncio.gather(*(check(store, user, count) for user, count in users.items()))
            assert cutter.cuts > 10
            for cut in range(0, 60, 7):
                cutter.bytes_left = cut
                recorded = await store.record_events([event(f"x{cut}", "eve", cut, cut)])
                assert recorded.stored + recorded.duplicates == 1
            eve = await store.read_rank_inputs("eve", NO_ITEMS, 1.0)
            assert eve.history_version == len(range(0, 60, 7)), "repeated, and stored once"
            assert store.stats.failures == store.stats.corrupt_values == 0
            await store.close()

    async def check(store: RedisStore, user: str, count: int) -> None:
        read = await store.read_rank_inputs(user, NO_ITEMS, 5.0)
        assert read.history_version == count
        assert read.histories["click"]["item"].tolist() == [100 * count + i for i in range(count)]

    asyncio.run(scenario())
