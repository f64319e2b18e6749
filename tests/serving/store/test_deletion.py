"""Deleting a user: nothing is left, of any layout of the records, and nobody else loses anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import redis
from store_fixtures import SCHEMA, cluster, embedded, event

from model.records import feature_dtype
from model.schema import Schema
from serving.store.open import open_store

NO_ITEMS = np.empty(0, np.int64)


@pytest.mark.parametrize("kind", ["embedded", "cluster"])
def test_a_deleted_user_is_gone_and_others_stay(kind: str, tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        store = await open_store(url, SCHEMA)
        ages = np.array([(33.0,), (44.0,)], dtype=feature_dtype(SCHEMA.user))
        await store.put_users(["ann", "bob"], ages)
        await store.record_events([event("a", "ann", 1, 1), event("b", "bob", 2, 2), event("c", "ann", 3, 3, "impression")])
        await store.append_served([("ann", b"1"), ("bob", b"2"), ("ann", b"3")])
        assert await store.delete_user("ann")
        (served,) = await store.execute([("XRANGE", store.keys.served, "-", "+")], "test")
        assert [fields for _, fields in served] == [[b"s", b"2"]]
        ann, bob = [await store.read_rank_inputs(user, NO_ITEMS, 1.0) for user in ("ann", "bob")]
        assert (ann.user, ann.history_version, [len(h) for h in ann.histories.values()]) == (None, 0, [0, 0])
        assert (bob.history_version, len(bob.histories["click"])) == (1, 1)
        assert bob.user is not None
        assert not await store.delete_user("ann")
        again = await store.record_events([event("a", "ann", 1, 1)])
        assert (again.stored, again.versions) == (1, {"ann": 1}), "what remembered repeated events is gone, too"
        await store.close()

    with embedded() if kind == "embedded" else cluster(tmp_path) as url:
        asyncio.run(scenario(url))


def test_records_of_older_schemas_are_deleted_too() -> None:
    data = SCHEMA.model_dump()
    data["events"][0]["attributes"] = []
    data["user"] = [*data["user"], {"name": "height", "kind": "numeric"}]
    older = Schema.model_validate(data)

    async def scenario(url: str) -> None:
        before = await open_store(url, older)
        record = np.zeros(1, before._events["click"][1])
        await before.record_events([event("a", "ann", 1, 1).__class__("a", "ann", "click", record)])
        await before.put_users(["ann"], np.zeros(1, feature_dtype(older.user)))
        await before.close()
        store = await open_store(url, SCHEMA)
        await store.record_events([event("b", "ann", 1, 1)])
        assert await store.delete_user("ann")
        await store.close()
        client = redis.Redis.from_url(url)
        assert client.keys("*{*") == []
        client.close()

    with embedded() as url:
        asyncio.run(scenario(url))
