"""One conformance suite for every kind of store: the embedded Valkey, Debian's redis-server, and a Cluster of three."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from store_fixtures import SCHEMA, cluster, debian_redis, embedded, event

from model.history import read_window, select_history
from model.records import feature_dtype
from serving.core.errors import StoreUnavailable
from serving.store.embedded import EmbeddedValkey
from serving.store.keys import StoreKeys, version_key
from serving.store.open import open_store
from serving.store.redis_store import RedisStore

NO_ITEMS = np.empty(0, dtype=np.int64)


@pytest.fixture(scope="module", params=["embedded valkey", "debian redis", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "embedded valkey":
        with embedded() as address:
            yield address
    elif request.param == "debian redis":
        with debian_redis(Path(tmp_path_factory.mktemp("redis"))) as address:
            yield address
    else:
        with cluster(Path(tmp_path_factory.mktemp("cluster"))) as address:
            yield address


def connect(url: str) -> Any:
    """A plain client of the store's server or servers."""
    if url.startswith("redis+cluster://"):
        return redis.RedisCluster.from_url(url.replace("redis+cluster", "redis").partition(",")[0])
    return redis.Redis.from_url(url)


def nodes_of(url: str) -> list[Any]:
    """A plain client of every server."""
    if not url.startswith("redis+cluster://"):
        return [redis.Redis.from_url(url)]
    return [redis.Redis(host=h, port=int(p)) for h, p in (n.split(":") for n in url.partition("://")[2].split(","))]


def node_of(url: str, key: str) -> Any:
    """A plain client of the server that holds `key`."""
    client = connect(url)
    if isinstance(client, redis.RedisCluster):
        return client.get_redis_connection(client.get_node_from_key(key))
    return client


def run(url: str, scenario: Callable[[RedisStore], Awaitable[None]]) -> None:
    """Run `scenario` on a fresh connection to an empty server."""
    client = connect(url)
    client.flushall()
    client.close()

    async def main() -> None:
        store = await open_store(url, SCHEMA)
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(main())


def test_histories_come_back_in_arrival_order_and_as_offline_selects_them(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        times = [50, 10, 40, 20, 30]  # out of order
        for i, t in enumerate(times):
            await store.record_events([event(f"e{i}", "ann", 100 + i, t)])
        read = await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        assert read.histories["click"]["item"].tolist() == [100, 101, 102, 103, 104]
        assert np.all(np.diff(read.histories["click"]["arrival_ms"]) >= 0)
        assert select_history(read.histories["click"], 3)["item"].tolist() == [104, 102, 100]
        assert read.history_version == 5
        assert len(read.histories["impression"]) == 0

    run(url, scenario)


def test_a_retried_call_stores_nothing_twice(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        batch = [event(f"e{i}", user, i, i) for i in range(5) for user in ("ann", "bob")]
        batch.append(event("i0", "ann", 7, 1, "impression"))
        first, second = await store.record_events(batch), await store.record_events(batch)
        assert (first.stored, first.duplicates) == (11, 0)
        assert (second.stored, second.duplicates) == (0, 11)
        assert first.versions == second.versions == {"ann": 6, "bob": 5}

    run(url, scenario)


def test_trimming_keeps_the_newest_and_bounds_the_value(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        for start in range(0, 400, 20):
            await store.record_events([event(f"e{i}", "ann", i, i) for i in range(start, start + 20)])
        read = await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        assert read.histories["click"]["item"].tolist() == list(range(400 - read_window(8), 400))
        assert read.history_version == 400

    run(url, scenario)
    client = node_of(url, StoreKeys(SCHEMA).tag("ann"))
    (history,) = client.keys("*:h:click:*")
    width = 32 - 4  # item, time, arrival, dwell
    assert client.strlen(history) <= width * (16 + 32)


def test_features_come_back_and_unknown_ones_are_missing(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        items = np.zeros(2, dtype=feature_dtype(SCHEMA.item_features))
        items["price"] = [1.5, 2.5]
        items["genres"] = [[1, 2, 3], [4, 5, 6]]
        await store.put_items(np.array([10, 11]), items)
        users = np.array([(33.0,)], dtype=feature_dtype(SCHEMA.user))
        await store.put_users(["ann"], users)
        read = await store.read_rank_inputs("ann", np.array([11, 99, 10]), 1.0)
        assert read.items_found.tolist() == [True, False, True]
        assert read.items["price"][[0, 2]].tolist() == [2.5, 1.5]
        assert np.isnan(read.items["price"][1])
        assert read.items["genres"][0].tolist() == [4, 5, 6]
        assert read.user is not None
        assert read.user["age"].tolist() == [33.0]
        assert (await store.read_rank_inputs("bob", NO_ITEMS, 1.0)).user is None

    run(url, scenario)


def test_one_round_trip_per_read_and_node_by_the_servers_own_count(url: str) -> None:
    clients = nodes_of(url)

    async def scenario(store: RedisStore) -> None:
        await store.record_events([event("e", "ann", 1, 1)])
        await store.read_rank_inputs("ann", np.arange(100), 1.0)
        for client, before in [(c, c.info("stats")["total_reads_processed"]) for c in clients]:
            own = client.info("stats")["total_reads_processed"] - before  # what others (a cluster's bus) do meanwhile
            before = client.info("stats")["total_reads_processed"]
            for _ in range(50):
                await store.read_rank_inputs("ann", np.arange(100), 1.0)
            reads = client.info("stats")["total_reads_processed"] - before
            assert reads <= 50 + own, f"{reads} reads for 50 calls (one is this INFO)"

    run(url, scenario)


def test_a_read_takes_the_version_before_the_histories(url: str) -> None:
    """A write in between then makes the histories newer than the version they are taken for, never older."""

    async def scenario(store: RedisStore) -> None:
        client = node_of(url, version_key(store.keys.tag("ann")))
        with client.monitor() as monitor:
            await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
            client.echo("end")
            commands = []
            for seen in monitor.listen():
                if "end" in seen["command"]:
                    break
                commands.append(seen["command"])
        version = next(at for at, command in enumerate(commands) if version_key(store.keys.tag("ann")) in command)
        histories = [at for at, command in enumerate(commands) if command.startswith("GETRANGE")]
        assert len(histories) == 2
        assert version < min(histories)

    run(url, scenario)


def test_a_thousand_concurrent_writes_wait_for_connections(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        recorded = await asyncio.gather(*(store.record_events([event(f"e{i}", f"u{i}", i, i)]) for i in range(1000)))
        assert sum(r.stored for r in recorded) == 1000
        assert store.stats.failures == 0

    run(url, scenario)


def test_repeating_a_backfill_changes_nothing_however_long_it_is(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        log = [event(f"e{i}", "ann", i, i, arrival_ms=i // 2) for i in range(2000)]  # pairs arrive together
        batches = [log[start : start + 333] for start in range(0, 2000, 333)]
        first = [await store.backfill_events(batch) for batch in batches]
        before = await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        again = [await store.backfill_events(batch) for batch in batches]
        after = await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        assert [sum(r.stored for r in first), sum(r.stored for r in again)] == [2000, 0]
        assert sum(r.duplicates for r in again) == 2000
        assert after.history_version == before.history_version == 2000
        assert after.histories["click"]["item"].tolist() == list(range(2000 - read_window(8), 2000))

    run(url, scenario)


def test_a_backfill_after_live_events_keeps_the_order_of_arrival(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await store.record_events([event("live", "ann", 1, 1)])
        old = [event("old", "ann", 2, 2, arrival_ms=2), event("i", "ann", 3, 3, "impression", arrival_ms=3)]
        recorded = await store.backfill_events(old)
        assert (recorded.stored, recorded.duplicates) == (1, 1)
        read = await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        assert read.histories["click"]["item"].tolist() == [1]
        assert read.histories["impression"]["item"].tolist() == [3]

    run(url, scenario)


def test_wrong_data_in_a_key_counts_as_missing(url: str) -> None:
    client = connect(url)

    async def scenario(store: RedisStore) -> None:
        await store.record_events([event("e", "ann", 1, 1)])
        tag = store.keys.tag("ann")
        client.set(store.keys.history(tag, "click"), b"not a record")
        client.lpush(store.keys.history(tag, "impression"), "wrong type")
        client.set(store.keys.user("ann"), b"short")
        client.set(version_key(tag), b"text")
        client.set(store.keys.item(5), b"x")
        read = await store.read_rank_inputs("ann", np.array([5]), 1.0)
        assert [len(h) for h in read.histories.values()] == [0, 0]
        assert (read.user, read.history_version, read.items_found.tolist()) == (None, 0, [False])
        assert store.stats.corrupt_values == 5

    run(url, scenario)


def test_the_deduplication_window_is_bounded_and_finds_aligned_ids_only(url: str) -> None:
    client = connect(url)

    async def scenario(store: RedisStore) -> None:
        for start in range(0, 1500, 100):
            await store.record_events([event(f"e{i}", "ann", i, i) for i in range(start, start + 100)])
        assert client.strlen(store.keys.window(store.keys.tag("ann"))) == 1024 * 8
        again = await store.record_events([event(f"e{i}", "ann", i, i) for i in range(1000, 1500)])
        assert (again.stored, again.duplicates) == (0, 500)

    run(url, scenario)


def test_outcomes_are_a_stream_read_in_order(url: str) -> None:
    async def scenario(store: RedisStore) -> None:
        await store.append_outcomes([b"one", b"two\x00\xff"])
        first = await store.read_outcomes("0", 10, 10)
        assert [data for _, data in first] == [b"one", b"two\x00\xff"]
        assert await store.read_outcomes(first[-1][0], 10, 10) == []
        await store.append_outcomes([b"three"])
        assert [data for _, data in await store.read_outcomes(first[-1][0], 10, 10)] == [b"three"]

    run(url, scenario)


def test_a_dead_store_is_unavailable_and_nothing_is_acknowledged() -> None:
    server = EmbeddedValkey()

    async def scenario() -> None:
        store = RedisStore(server.url, SCHEMA)
        await store.record_events([event("e", "ann", 1, 1)])
        os.kill(server.pid, signal.SIGKILL)
        server._process.wait()
        with pytest.raises(StoreUnavailable, match="store: read: "):
            await store.read_rank_inputs("ann", NO_ITEMS, 1.0)
        with pytest.raises(StoreUnavailable, match="store: record events: "):
            await store.record_events([event("f", "ann", 1, 1)])
        await store.close()

    try:
        asyncio.run(scenario())
    finally:
        server.close()


def test_a_frozen_store_is_given_up_within_the_budget_and_used_again_afterwards() -> None:
    server = EmbeddedValkey()

    async def scenario() -> None:
        store = RedisStore(server.url, SCHEMA)
        await store.record_events([event("e", "ann", 1, 1)])
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(StoreUnavailable, match="no answer within 50 ms"):
            await store.read_rank_inputs("ann", NO_ITEMS, 0.05)
        os.kill(server.pid, signal.SIGCONT)
        assert (await store.read_rank_inputs("ann", NO_ITEMS, 2.0)).history_version == 1
        await store.close()

    try:
        asyncio.run(scenario())
    finally:
        server.close()


def test_a_wrong_url_is_explained_without_its_password() -> None:
    with pytest.raises(
        StoreUnavailable, match=r"expected 'embedded' or a URL of redis://, rediss://, unix://, .*, found the scheme 'http'$"
    ):
        asyncio.run(open_store("http://:hush@x", SCHEMA))
    with pytest.raises(StoreUnavailable, match=r"found no scheme$"):
        asyncio.run(open_store(":hush@x", SCHEMA))
    for unreadable in ("redis://:hush@h:port", "redis://ann:hush#@h", "redis://h/0?db=hush"):
        with pytest.raises(StoreUnavailable, match="store: expected redis://HOST:PORT/DATABASE, found a URL that") as caught:
            asyncio.run(open_store(unreadable, SCHEMA))
        assert "hush" not in str(caught.value)
    with pytest.raises(StoreUnavailable) as caught:
        asyncio.run(open_store("redis://:hush@127.0.0.1:1/0", SCHEMA))
    assert "127.0.0.1" in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("redis://ann:hush@127.0.0.1:1/0", "redis://127.0.0.1:1/0"),
        ("unix:///tmp/x.sock", "unix:///tmp/x.sock"),
        ("unix:///tmp/x.sock?password=hush", "unix:///tmp/x.sock"),
        ("redis://127.0.0.1:1/0?username=ann&password=hush", "redis://127.0.0.1:1/0"),
        ("rediss://h:2", "rediss://h:2"),
    ],
)
def test_the_public_url_holds_no_credentials(url: str, public: str) -> None:
    assert RedisStore(url, SCHEMA).public_url == public
