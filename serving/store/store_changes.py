"""Hears what changes in the store, so that what is kept of it can be trusted between two reads.

One RESP3 connection per primary with broadcasting ``CLIENT TRACKING``: the server names every key under a
tracked prefix that anybody writes, expires or deletes. Tracked are the features of items and of users and the list of
forgotten users. While a connection is away nothing is known to be current: the listener is told to doubt all features,
when tracking is lost and when it is back, and the list, which keeps users for a day, is read again.
A connection that has been silent is asked for a sign of life, so a frozen server or a dead link shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Sequence, Set
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from serving.core.errors import StoreUnavailable
from serving.store.redis_store import RedisStore

SILENCE_S = 1.0
"""Time without a word after which a server is asked, and then time to answer."""

RETRY_S = 0.2
_USER = re.compile(rb"\{[0-9a-f]{32}\}")
_LOG = logging.getLogger(__name__)


class Listener(Protocol):
    """Who keeps features and states of users; users go by `serving.store.keys.user_hash`."""

    def items_changed(self, keys: NDArray[np.int64] | None) -> None:
        """Features of `keys` [N] (None: of all items) have changed."""
        ...

    def users_changed(self, users: Set[str] | None) -> None:
        """Features of these users (None: of all users) have changed."""
        ...

    def features_doubted(self) -> None:
        """Changes of features may have been missed."""
        ...

    def users_forgotten(self, users: Set[str]) -> None:
        """These users have been deleted from the store."""
        ...


class StoreChanges:
    """Listens while `run` runs. `is_live`: every primary is listened to."""

    def __init__(self, store: RedisStore, listener: Listener) -> None:
        self._store, self._listener = store, listener
        self._items, self._users = store.keys.items.encode(), store.keys.users.encode()
        self._forgotten = store.keys.forgotten.encode()
        self._to_read = asyncio.Event()
        self.is_live = False

    async def run(self) -> None:
        """Listen for ever; reconnects."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError, StoreUnavailable) as error:
                if self.is_live:
                    _LOG.warning("tracking of the store is lost (%s); near caches are in doubt", error or type(error).__name__)
            finally:
                self._lost()
            await asyncio.sleep(RETRY_S)

    def _lost(self) -> None:
        if self.is_live:
            self.is_live = False
            self._listener.features_doubted()

    async def _listen(self) -> None:
        async with asyncio.timeout(2 * SILENCE_S):
            connections = await self._store.nodes.trackers()
        try:
            async with asyncio.timeout(2 * SILENCE_S):
                await asyncio.gather(*map(self._subscribe, connections))
            self._listener.features_doubted()  # what was read before is not covered
            self._to_read.set()
            self.is_live = True
            await _first_to_end([self._read_forgotten(), *(self._hear(connection) for connection in connections)])
        finally:
            for connection in connections:
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)

    async def _subscribe(self, connection: Any) -> None:
        await connection.connect()
        # redis-py has no public way to hear invalidations on the asyncio client.
        connection._parser.set_invalidation_push_handler(self._changed)
        prefixes = [word for prefix in (self._items, self._users, self._forgotten) for word in ("PREFIX", prefix)]
        await connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", *prefixes)
        await connection.read_response()

    async def _hear(self, connection: Any) -> None:
        is_asked = False
        while True:
            heard = await connection.read_response(timeout=SILENCE_S, push_request=True)
            if heard is not None:
                is_asked = False
            elif is_asked:
                raise RedisConnectionError(f"no answer within {SILENCE_S:g} s")
            else:
                await connection.send_command("PING")
                is_asked = True

    async def _changed(self, message: Sequence[Any]) -> bool:
        """A push: ``[b"invalidate", [key, …]]``, or None in place of the keys when the database was flushed."""
        names = message[1]
        if names is None:
            self._listener.items_changed(None)
            self._listener.users_changed(None)
            return True
        if self._forgotten in names:
            self._to_read.set()
        items = [name[len(self._items) :] for name in names if name.startswith(self._items)]
        if keys := [int(tail) for tail in items if tail.lstrip(b"-").isdigit()]:
            self._listener.items_changed(np.array(keys, np.int64))
        users = (name[len(self._users) :] for name in names if name.startswith(self._users))
        if hashes := {tail[1:-1].decode() for tail in users if _USER.fullmatch(tail)}:
            self._listener.users_changed(hashes)
        return True

    async def _read_forgotten(self) -> None:
        """Whenever the list of forgotten users has changed; all of it, since it is short and telling twice is harmless."""
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            if users := await self._store.forgotten_users():
                self._listener.users_forgotten(users)


async def _first_to_end(coroutines: Sequence[Any]) -> None:
    """Run all until one ends or fails, then end the others; raises what it raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
