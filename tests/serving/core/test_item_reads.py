"""Ranks that miss the same items at once: the store is asked once for each, whatever becomes of the first who asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from rank_fixtures import SilentObserver

from model.artifact import Artifact
from model.records import Records, event_dtype, feature_dtype, missing_records
from serving.core.errors import StoreUnavailable
from serving.core.feature_read import FeatureReader
from serving.core.host_features import RECORD, HostFeatures
from serving.core.options import CoreOptions
from serving.store.base import RankInputs


class GatedStore:
    """Answers a read of user `u` when `gates[u]` is set; an item's popularity is its key plus `edition`."""

    def __init__(self, host: HostFeatures) -> None:
        self._schema, self._dtype = host.schema, feature_dtype(host.schema.item_features)
        self.asked: Counter[int] = Counter()
        self.gates: dict[str, asyncio.Event] = {}
        self.edition = 0
        self.is_down_for: set[str] = set()

    def _items(self, keys: NDArray[np.int64]) -> Records:
        records = missing_records(self._dtype, len(keys))
        records["popularity"] = keys + self.edition
        return records

    async def read_rank_inputs(
        self, user_id: str, item_keys: NDArray[np.int64], timeout_s: float, *, with_user: bool = True
    ) -> RankInputs:
        self.asked.update(item_keys.tolist())
        items = self._items(item_keys)
        await self.gates.setdefault(user_id, asyncio.Event()).wait()
        if user_id in self.is_down_for:
            raise StoreUnavailable("store: down")
        histories = {e.name: missing_records(event_dtype(e), 0) for e in self._schema.events}
        return RankInputs(None, histories, 0, items, np.ones(len(item_keys), bool))

    async def read_items(self, keys: NDArray[np.int64], timeout_s: float) -> tuple[Records, NDArray[np.bool_]]:
        self.asked.update(keys.tolist())
        return self._items(keys), np.ones(len(keys), bool)


Reads = Callable[..., asyncio.Task[list[float]]]


def run(artifact: Artifact, scenario: Callable[[GatedStore, FeatureReader, Reads], Awaitable[None]]) -> None:
    async def whole() -> None:
        host = HostFeatures(artifact)
        store = GatedStore(host)
        reader = FeatureReader(host, store, CoreOptions(), SilentObserver())  # type: ignore[arg-type]

        def read(user: str, *keys: int) -> asyncio.Task[list[float]]:
            async def popularities() -> list[float]:
                _, items = await reader.read(user, np.array(keys), 0, 1e12)
                found: list[float] = items[RECORD]["popularity"].tolist()
                return found

            return asyncio.create_task(popularities())

        await scenario(store, reader, read)

    asyncio.run(whole())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("first", ["ann", "bob"])
def test_shared_items_are_asked_for_once(artifact: Artifact, first: str) -> None:
    async def scenario(store: GatedStore, reader: FeatureReader, read: Reads) -> None:
        ann = read("ann", 1, 2, 3)
        await settle()
        bob = read("bob", 3, 4, 2, 3)
        await settle()
        for user in ("ann", "bob") if first == "ann" else ("bob", "ann"):
            store.gates[user].set()
            await settle()
        assert await ann == [1, 2, 3]
        assert await bob == [3, 4, 2, 3]
        assert store.asked == {1: 1, 2: 1, 3: 1, 4: 1}
        assert not reader._reads._reads

    run(artifact, scenario)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_whoever_waits_reads_for_itself_when_the_first_one_gets_nothing(artifact: Artifact, end: str) -> None:
    async def scenario(store: GatedStore, reader: FeatureReader, read: Reads) -> None:
        ann = read("ann", 1, 2)
        await settle()
        bob = read("bob", 2, 3)
        await settle()
        store.gates["bob"].set()
        await settle()
        if end == "cancelled":
            ann.cancel()
        else:
            store.is_down_for.add("ann")
            store.gates["ann"].set()
        assert await bob == [2, 3]
        assert store.asked[2] == 2
        await asyncio.gather(ann, return_exceptions=True)
        assert not reader._reads._reads

    run(artifact, scenario)


def test_an_item_that_has_changed_meanwhile_is_read_anew(artifact: Artifact) -> None:
    async def scenario(store: GatedStore, reader: FeatureReader, read: Reads) -> None:
        ann = read("ann", 1, 2)
        await settle()
        store.edition = 100
        reader.items_changed(np.array([2]))
        bob = read("bob", 1, 2)
        await settle()
        for gate in store.gates.values():
            gate.set()
        assert await ann == [1, 2]
        assert await bob == [1, 102]
        store.gates["eve"] = asyncio.Event()
        store.gates["eve"].set()
        assert await read("eve", 2) == [102]

    run(artifact, scenario)
