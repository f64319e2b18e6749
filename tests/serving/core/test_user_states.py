"""The user-state cache: bounded, keyed by content, one encode for all who ask."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from model.affinity import AffinityRecord, ValueSums
from serving.core.scheduler import Urgency
from serving.core.user_states import ENTRY_OVERHEAD_BYTES, Flight, Flights, StateKey, UserState, UserStateCache, state_key

USER = np.zeros(1, dtype=[("age", "<f4")])
HISTORY = {"click": np.zeros(3, dtype=[("item", "<i8")]), "view": np.zeros(0, dtype=[("item", "<i8")])}


def state(value: float = 0.0) -> UserState:
    return UserState({"state_0": np.full((1, 4, 8), value, np.float32)}, AffinityRecord.nothing(), None, 0)


ENTRY = ENTRY_OVERHEAD_BYTES + 4 * 8 * 4


def test_key_follows_content() -> None:
    key = state_key("u", 1, USER, HISTORY)
    assert key == state_key("u", 1, USER.copy(), {k: v.copy() for k, v in HISTORY.items()})
    other_feature, longer = USER.copy(), dict(HISTORY, click=np.zeros(4, dtype=[("item", "<i8")]))
    other_feature["age"] = 1.0
    moved = dict(HISTORY, click=HISTORY["view"], view=HISTORY["click"])
    assert len({key, state_key("u", 2, USER, HISTORY), state_key("u", 1, other_feature, HISTORY)}) == 3
    assert len({key, state_key("u", 1, USER, longer), state_key("u", 1, USER, moved)}) == 3


def test_cache_is_bounded_in_bytes_and_drops_the_least_recently_used() -> None:
    cache = UserStateCache(2.5 * ENTRY)
    a, b, c = (StateKey(u, 0) for u in "abc")
    cache.put(a, state())
    cache.put(b, state())
    assert cache.get(a) is not None
    cache.put(c, state())
    assert cache.get(b) is None
    assert cache.get(a) is not None
    assert cache.get(c) is not None
    assert cache.bytes == 2 * ENTRY
    assert cache.newest_of("b") is None


def test_what_affinities_need_counts_among_the_bytes() -> None:
    sums = ValueSums(np.arange(5, dtype=np.int32), np.zeros(5), np.zeros(5))
    affinities = AffinityRecord(np.zeros(2, np.float32), (sums, sums))
    cache = UserStateCache(100 * ENTRY)
    cache.put(StateKey("u", 0), replace(state(), affinities=affinities))
    assert cache.bytes == ENTRY + 2 * 4 + 2 * 5 * (4 + 8 + 8)
    cache.forget("u")
    assert cache.bytes == 0


def test_a_user_keeps_two_states_and_the_newest_is_found() -> None:
    cache = UserStateCache(100 * ENTRY)
    for digest in range(4):
        cache.put(StateKey("u", digest), state(digest))
    assert len(cache) == 2
    newest = cache.newest_of("u")
    assert newest is not None
    assert newest.tensors["state_0"][0, 0, 0] == 3
    cache.clear()
    assert (len(cache), cache.bytes, cache.newest_of("u")) == (0, 0, None)


class Encoder:
    """Launches flights that land when told to."""

    def __init__(self) -> None:
        self.launched, self.cancelled, self.promoted = 0, 0, 0
        self.future: asyncio.Future[UserState] | None = None

    def launch(self) -> Flight:
        self.launched += 1
        self.future = asyncio.get_running_loop().create_future()
        return Flight(self.future, self._cancel, self._promote)

    def _cancel(self) -> None:
        self.cancelled += 1
        assert self.future is not None
        self.future.cancel()

    def _promote(self, _: Urgency) -> None:
        self.promoted += 1


async def _joined(flights: Flights, encoder: Encoder, count: int) -> list[asyncio.Task[UserState]]:
    tasks = [asyncio.create_task(flights.join(StateKey("u", 0), Urgency(1.0, 1.0), encoder.launch)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def test_concurrent_requests_share_one_encode() -> None:
    async def scenario() -> None:
        cache, encoder = UserStateCache(1e9), Encoder()
        tasks = await _joined(Flights(cache), encoder, 5)
        assert encoder.future is not None
        encoder.future.set_result(state(7.0))
        results = await asyncio.gather(*tasks)
        assert encoder.launched == 1
        assert encoder.promoted == 4
        assert all(r is results[0] for r in results)
        assert cache.get(StateKey("u", 0)) is results[0]

    asyncio.run(scenario())


def test_encode_is_abandoned_only_when_the_last_request_has_gone() -> None:
    async def scenario() -> None:
        encoder = Encoder()
        flights = Flights(UserStateCache(1e9))
        first, second = await _joined(flights, encoder, 2)
        first.cancel()
        await asyncio.sleep(0)
        assert encoder.cancelled == 0
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert encoder.cancelled == 1
        assert StateKey("u", 0) not in flights

    asyncio.run(scenario())


def test_what_was_begun_for_a_forgotten_user_is_answered_and_not_cached() -> None:
    async def scenario() -> None:
        cache, encoder = UserStateCache(1e9), Encoder()
        flights = Flights(cache)
        (before,) = await _joined(flights, encoder, 1)
        landing = encoder.future
        flights.forget("u")
        (after,) = await _joined(flights, encoder, 1)
        assert encoder.launched == 2
        assert landing is not None
        landing.set_result(state(7.0))
        assert (await before).history_version == 0
        assert len(cache) == 0
        assert StateKey("u", 0) in flights, "the other one has not landed"
        assert encoder.future is not None
        encoder.future.set_result(state(8.0))
        await after
        assert len(cache) == 1

    asyncio.run(scenario())


def test_failed_encode_reaches_everyone_and_is_not_cached() -> None:
    async def scenario() -> None:
        cache, encoder = UserStateCache(1e9), Encoder()
        tasks = await _joined(Flights(cache), encoder, 2)
        assert encoder.future is not None
        encoder.future.set_exception(RuntimeError("no device"))
        for task in tasks:
            with pytest.raises(RuntimeError, match="no device"):
                await task
        assert len(cache) == 0

    asyncio.run(scenario())
