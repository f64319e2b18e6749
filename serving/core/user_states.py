"""The cache of user states, and the encodes in flight that will fill it.

A state depends on the user's features and histories and on nothing else, so its key is their
content: equal inputs have one state whatever store, version counter or replica delivered them. The
cache is bounded in bytes, least recently used first out. Concurrent requests of a user share one
encode (`Flight`); it is cancelled only when the last of them has gone.

Owned by the event loop; no locks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash
from numpy.typing import NDArray

from model.affinity import AffinityRecord
from model.records import Records
from serving.core.scheduler import Urgency

ENTRY_OVERHEAD_BYTES = 1024
"""Keys, dictionary entries and array headers of one cached state, roughly."""

STATES_PER_USER = 2
"""An app may send the same user with two sets of features in turn (two devices); older histories are not asked for again."""


class StateKey(NamedTuple):
    """Identity of a state within one model version: the user and a digest of everything the encoder reads."""

    user_id: str
    digest: int


@dataclass(frozen=True)
class UserState:
    """The state tensors [1, …] by name, and what scoring and the reply need of the histories they were made from.

    `affinities`: of those histories, whatever the store says by now, so that a graph never sees two histories of one user.
    `queue_s`, `encode_s`: what making it took. `history_version`: of the histories it was made from.
    `is_degraded`: made without the store or from a part of the histories, so nothing may fall back on it.
    `flops_per_candidate`: useful work of scoring one candidate with it, on the real events behind it; None: that of the caps.
    """

    tensors: Mapping[str, NDArray[Any]]
    affinities: AffinityRecord
    newest_ms: int | None
    history_length: int
    queue_s: float = 0.0
    encode_s: float = 0.0
    history_version: int = 0
    is_degraded: bool = False
    flops_per_candidate: float | None = None


def state_key(user_id: str, user_key: int, user: Records, histories: Mapping[str, Records]) -> StateKey:
    """Key of the state of these inputs; histories as selected (`model.history.select_history`)."""
    digest = xxhash.xxh3_64(user_key.to_bytes(8, "little", signed=True))
    digest.update(user.tobytes())
    for event, history in histories.items():
        digest.update(f"|{event}:{len(history)}|".encode())
        digest.update(history.tobytes())
    return StateKey(user_id, digest.intdigest())


class UserStateCache:
    """States by key, bounded in bytes; `newest_of` finds the last state of a user for degraded replies."""

    def __init__(self, capacity_bytes: float) -> None:
        self._capacity = capacity_bytes
        self._states: OrderedDict[StateKey, UserState] = OrderedDict()
        self._of_user: dict[str, list[StateKey]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: StateKey) -> UserState | None:
        """The state, now the most recently used."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def newest_of(self, user_id: str) -> UserState | None:
        """The whole state most recently put for this user, if it is still cached."""
        for key in reversed(self._of_user.get(user_id, [])):
            if not self._states[key].is_degraded:
                return self.get(key)
        return None

    def put(self, key: StateKey, state: UserState) -> None:
        """Add a state, and drop the user's older ones but `STATES_PER_USER`, then whatever was used longest ago."""
        if key in self._states:
            return
        self.bytes += _bytes(state)
        self._states[key] = state
        keys = self._of_user.setdefault(key.user_id, [])
        keys.append(key)
        if len(keys) > STATES_PER_USER:
            self._drop(keys[0])
        while self.bytes > self._capacity and len(self._states) > 1:
            self._drop(next(iter(self._states)))

    def forget(self, user_id: str) -> None:
        """Drop every state of a user."""
        for key in list(self._of_user.get(user_id, ())):
            self._drop(key)

    def users(self) -> list[str]:
        """Everybody of whom there is a state."""
        return list(self._of_user)

    def clear(self) -> None:
        """Forget every state."""
        self._states.clear()
        self._of_user.clear()
        self.bytes = 0

    def _drop(self, key: StateKey) -> None:
        self.bytes -= _bytes(self._states.pop(key))
        keys = self._of_user[key.user_id]
        keys.remove(key)
        if not keys:
            del self._of_user[key.user_id]


@dataclass(eq=False)
class Flight:
    """An encode in flight: its future, how to abandon it, how many requests wait for it; a forgotten one is not cached."""

    future: asyncio.Future[UserState]
    cancel: Callable[[], None]
    promote: Callable[[Urgency], None]
    waiters: int = 0
    is_forgotten: bool = False


class Flights:
    """Encodes in flight by key: at most one each."""

    def __init__(self, cache: UserStateCache) -> None:
        self._cache = cache
        self._flights: dict[StateKey, Flight] = {}

    def __contains__(self, key: StateKey) -> bool:
        return key in self._flights

    def forget(self, user_id: str) -> None:
        """States of a user that are being made are not cached; who waits for one gets it."""
        for key in [key for key in self._flights if key.user_id == user_id]:
            self._flights.pop(key).is_forgotten = True

    def users(self) -> list[str]:
        """Everybody of whom a state is being made."""
        return [key.user_id for key in self._flights]

    def start(self, key: StateKey, flight: Flight) -> Flight:
        """Register a submitted encode; its state is cached when it lands."""
        self._flights[key] = flight
        flight.future.add_done_callback(lambda future: self._landed(key, flight, future))
        return flight

    async def join(self, key: StateKey, urgency: Urgency, launch: Callable[[], Flight]) -> UserState:
        """Wait for the encode of `key`, launching it unless it is in flight."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self.start(key, launch())
        else:
            flight.promote(urgency)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.future)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.future.done():
                flight.cancel()
                self._remove(key, flight)

    def _remove(self, key: StateKey, flight: Flight) -> None:
        if self._flights.get(key) is flight:  # not another one that has begun since
            del self._flights[key]

    def _landed(self, key: StateKey, flight: Flight, future: asyncio.Future[UserState]) -> None:
        self._remove(key, flight)
        if not flight.is_forgotten and not future.cancelled() and future.exception() is None:
            self._cache.put(key, future.result())


def _bytes(state: UserState) -> int:
    return ENTRY_OVERHEAD_BYTES + state.affinities.nbytes + sum(tensor.nbytes for tensor in state.tensors.values())
