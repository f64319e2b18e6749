"""Events from a Redis Stream, read by a consumer group: every entry's field ``e`` is a serialized `kunlun.v1.Event`.

Producers write ``XADD <stream> MAXLEN ~ <n> * e <bytes>``. Replicas share the group, so each entry goes to
one of them. What a reader has read and not acknowledged comes to it again after a fault, and after
`CLAIM_AFTER_S` to another one. Rejected entries go to ``<stream>:rejected``.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from serving.ingest.source import Entry, SourceUnavailable
from serving.store.nodes import Nodes, open_nodes
from serving.store.redis_store import stream_entries

CLAIM_AFTER_S = 30.0
MOST_REJECTED = 10_000
FIELD = b"e"


class RedisStreamSource:
    """Implements `EventSource`. `consumer`: this reader's name in the group (default: host and process)."""

    def __init__(self, url: str, stream: str, group: str, *, consumer: str = "", timeout_s: float = 2.0) -> None:
        self._nodes: Nodes = open_nodes(url, max_connections=4, timeout_s=timeout_s)
        self._stream, self._group, self._timeout_s = stream, group, timeout_s
        self._consumer = consumer or f"{socket.gethostname()}-{os.getpid()}"
        self._exists = False
        self._own_done = False  # everything that this reader had not acknowledged before it started has been read again

    async def read(self, count: int, wait_s: float) -> list[Entry]:
        """See `EventSource`."""
        await self._create()
        if not self._own_done:
            if entries := await self._read_group(count, 0, "0"):
                return entries
            self._own_done = True
        if entries := await self._claim(count):
            return entries
        return await self._read_group(count, wait_s, ">")

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """See `EventSource`."""
        if entries:
            await self._call("XACK", self._stream, self._group, *(entry.position for entry in entries))

    async def reject(self, entry: Entry, reason: str) -> None:
        """See `EventSource`."""
        fields = ("position", entry.position, "reason", reason, FIELD, entry.event or b"")
        await self._call("XADD", f"{self._stream}:rejected", "MAXLEN", "~", MOST_REJECTED, "*", *fields)
        await self.acknowledge([entry])

    async def lag(self) -> int:
        """See `EventSource`."""
        await self._create()
        reply = await self._call("XINFO", "GROUPS", self._stream)
        for group in map(_fields, reply):
            if group[b"name"] == self._group.encode():
                return int(group.get(b"lag") or 0) + int(group[b"pending"])
        return 0

    async def close(self) -> None:
        """See `EventSource`."""
        await self._nodes.close()

    def again(self) -> None:
        """See `EventSource`."""
        self._own_done = False

    async def _create(self) -> None:
        if self._exists:
            return
        try:
            await self._call("XGROUP", "CREATE", self._stream, self._group, "0", "MKSTREAM")
        except SourceUnavailable as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._exists = True

    async def _read_group(self, count: int, wait_s: float, after: str) -> list[Entry]:
        block = ("BLOCK", max(1, round(wait_s * 1000))) if wait_s > 0 else ()
        command = ("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *block, "STREAMS", self._stream, after)
        reply = await self._call(*command, wait_s=wait_s)
        return [Entry(position, fields.get(FIELD)) for position, fields in stream_entries(reply)]

    async def _claim(self, count: int) -> list[Entry]:
        """Entries that a vanished reader has left."""
        idle_ms = round(CLAIM_AFTER_S * 1000)
        reply = await self._call("XAUTOCLAIM", self._stream, self._group, self._consumer, idle_ms, "0", "COUNT", count)
        return [Entry(position, fields.get(FIELD)) for position, fields in stream_entries([[self._stream, reply[1]]])]

    async def _call(self, *command: Any, wait_s: float = 0.0) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s + wait_s):
                (reply,) = await self._nodes.exchange([command])
        except TimeoutError as error:
            raise SourceUnavailable(f"stream {self._stream}: no answer within {self._timeout_s + wait_s:g} s") from error
        except (RedisError, OSError) as error:
            raise SourceUnavailable(f"stream {self._stream}: {error or type(error).__name__}") from error
        if isinstance(reply, RedisError):
            if str(reply).startswith("NOGROUP"):  # the stream was deleted, or the store came back empty
                self._exists = False
            raise SourceUnavailable(f"stream {self._stream}: {reply}") from reply
        return reply


def _fields(reply: Any) -> dict[bytes, Any]:
    """A map, of either protocol version."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
