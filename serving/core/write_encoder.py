"""Encode on write: after `RecordEvents`, users ranked lately get their new state before they ask for it.

Owns the set of users to do, without doubles and bounded (the newest stay), and a few concurrent
tasks. The work itself is background work of the scheduler: it runs only when nothing else waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

CONCURRENT = 8
PENDING = 4096
_log = logging.getLogger(__name__)


class WriteEncoder:
    """Calls `encode(user_id)` for each requested user, one call per user at a time and `CONCURRENT` in all."""

    def __init__(self, encode: Callable[[str], Awaitable[None]]) -> None:
        self._encode = encode
        self._pending: dict[str, None] = {}
        self._running: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def request(self, user_id: str) -> None:
        """Encode this user soon."""
        if self._stopped:
            return
        self._pending.pop(user_id, None)
        self._pending[user_id] = None
        if len(self._pending) > PENDING:
            del self._pending[next(iter(self._pending))]
        if len(self._tasks) < CONCURRENT:
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until everything requested so far has been encoded."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Forget what is pending and end the tasks."""
        self._stopped = True
        self._pending.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        # A user who is being encoded is left to that worker, which looks again when it is done.
        while (user_id := next((user for user in self._pending if user not in self._running), None)) is not None:
            del self._pending[user_id]
            self._running.add(user_id)
            try:
                await self._encode(user_id)
            except Exception:
                _log.exception("encoding after a write failed; the next Rank of the user encodes")
            finally:
                self._running.discard(user_id)
