"""Changes of item features are heard of, through restarts and frozen servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from store_fixtures import SCHEMA, cluster, debian_redis, event, until

from loadtest.store_process import StoreProcess, store_process
from model.records import feature_dtype
from serving.store.keys import user_hash
from serving.store.open import open_store
from serving.store.redis_store import RedisStore
from serving.store.store_changes import StoreChanges


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self.everything = self.doubts = 0
        self.forgotten: set[str] = set()
        self.users: set[str] = set()

    def items_changed(self, keys: NDArray[np.int64] | None) -> None:
        if keys is None:
            self.everything += 1
        else:
            self.keys |= set(keys.tolist())

    def users_changed(self, users: Set[str] | None) -> None:
        self.users |= users or set()

    def features_doubted(self) -> None:
        self.doubts += 1

    def users_forgotten(self, users: Set[str]) -> None:
        self.forgotten |= users


async def put(store: RedisStore, *keys: int) -> None:
    await store.put_items(np.array(keys), np.zeros(len(keys), feature_dtype(SCHEMA.item_features)))


def listening(url: str, scenario: Callable[[RedisStore, Listener, StoreChanges], Awaitable[None]]) -> None:
    async def main() -> None:
        store, listener = await open_store(url, SCHEMA), Listener()
        changes = StoreChanges(store, listener)
        task = asyncio.create_task(changes.run())
        try:
            await until(lambda: changes.is_live)
            await scenario(store, listener, changes)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await store.close()

    asyncio.run(main())


async def hears(store: RedisStore, listener: Listener, changes: StoreChanges) -> None:
    assert listener.doubts == 1, "what was read before is not covered"
    await put(store, 1, -7, 2**62)
    await until(lambda: listener.keys == {1, -7, 2**62})
    await store.nodes.exchange([("UNLINK", store.keys.item(5)), ("SET", "unrelated", "x")])
    await store.nodes.exchange([("SET", store.keys.item(5), "x"), ("UNLINK", store.keys.item(5))])
    await until(lambda: 5 in listener.keys)
    assert listener.keys == {1, -7, 2**62, 5}
    await store.put_users(["ann", "bob"], np.zeros(2, feature_dtype(SCHEMA.user)))
    await until(lambda: listener.users == {user_hash("ann"), user_hash("bob")})
    listener.users.clear()
    await store.record_events([event("e", "ann", 1, 1)])
    await store.delete_user("ann")
    await until(lambda: listener.forgotten == {user_hash("ann")})
    assert listener.users == {user_hash("ann")}, "histories are not listened to"
    assert listener.keys == {1, -7, 2**62, 5}
    await store.nodes.on_every_node("FLUSHALL")
    await until(lambda: listener.everything > 0)
    assert listener.doubts == 1


def test_written_and_deleted_items_are_heard_of(tmp_path: Path) -> None:
    with store_process(tmp_path) as server:
        listening(server.url, hears)


def test_on_debians_redis(tmp_path: Path) -> None:
    with debian_redis(tmp_path) as url:
        listening(url, hears)


def test_on_every_node_of_a_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path) as url:
        listening(url, hears)


def test_a_restarted_server_is_listened_to_again_and_everything_is_forgotten(tmp_path: Path) -> None:
    def restarting(server: StoreProcess) -> Callable[[RedisStore, Listener, StoreChanges], Awaitable[None]]:
        async def scenario(store: RedisStore, listener: Listener, changes: StoreChanges) -> None:
            await store.delete_user("ann")
            await until(lambda: bool(listener.forgotten))
            listener.forgotten.clear()
            server.kill()
            await until(lambda: not changes.is_live)
            assert listener.doubts == 2
            server.start()
            await until(lambda: changes.is_live)
            assert listener.doubts == 3
            await until(lambda: listener.forgotten == {user_hash("ann")})  # meanwhile, while nobody could hear it
            await put(store, 4)
            await until(lambda: 4 in listener.keys)

        return scenario

    with store_process(tmp_path) as server:
        listening(server.url, restarting(server))


def test_a_server_that_falls_silent_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.store.store_changes.SILENCE_S", 0.1)

    def freezing(server: StoreProcess) -> Callable[[RedisStore, Listener, StoreChanges], Awaitable[None]]:
        async def scenario(store: RedisStore, listener: Listener, changes: StoreChanges) -> None:
            await asyncio.sleep(0.5)
            assert changes.is_live, "a server with nothing to say is not taken for dead"
            server.freeze()
            await until(lambda: not changes.is_live)
            server.thaw()
            await until(lambda: changes.is_live)

        return scenario

    with store_process(tmp_path) as server:
        listening(server.url, freezing(server))
