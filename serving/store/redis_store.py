"""The store on any Redis-compatible server (Redis ≥ 7, Valkey): one round trip per Rank, atomic idempotent appends.

Owns the connections. Called by the core on the event loop. Histories are strings of fixed-width
records that go straight into numpy; nothing is parsed per event. Every fault of the server, the
network or a time-out becomes `StoreUnavailable`; data that does not fit its layout counts as missing
and is counted, so a broken key never breaks a Rank.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import compress
from typing import Any, TypeVar

import numpy as np
import redis.asyncio as redis
from numpy.typing import NDArray
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from model.history import read_window
from model.records import ARRIVAL_MS, Records, event_dtype, feature_dtype, missing_records
from model.schema import Schema
from serving.core.errors import StoreUnavailable
from serving.core.types import RecordedEvents, UserEvent
from serving.store.base import RankInputs
from serving.store.keys import StoreKeys, event_id_hash, version_key, window_key

T = TypeVar("T")
DEDUPLICATION_WINDOW = 1024
CHUNK = 2000
APPEND_USERS = 100
"""Users of one pipeline of appends: encoding more of them at once would hold up the event loop."""


@dataclass
class StoreStats:
    """Counters since start-up."""

    reads: int = 0
    failures: int = 0
    corrupt_values: int = 0


@dataclass(frozen=True)
class RedisOptions:
    """`history_ttl_s`: life of a user's keys after their last event (0: for ever); `timeout_s`: of writes.

    With `max_connections` in use further calls wait for one, inside their own time limit.
    """

    prefix: str = "kunlun"
    history_ttl_s: int = 0
    timeout_s: float = 2.0
    max_outcomes: int = 1_000_000
    max_connections: int = 64


class RedisStore:
    """Implements `serving.store.base.FeatureStore`."""

    def __init__(self, url: str, schema: Schema, options: RedisOptions | None = None) -> None:
        self.schema, self.options = schema, options or RedisOptions()
        self.public_url = _without_secrets(url)
        self.keys = StoreKeys(schema, self.options.prefix)
        self.stats = StoreStats()
        self._item_dtype, self._user_dtype = feature_dtype(schema.item_features), feature_dtype(schema.user)
        self._events = {e.name: (e, event_dtype(e)) for e in schema.events}
        self._windows = [(n, str(-read_window(e.cap) * dtype.itemsize)) for n, (e, dtype) in self._events.items()]
        # No time limit of the sockets' own: each call has one for all it does (`_guard`), and theirs costs a task per command.
        # One immediate retry covers a pooled connection that the server has closed meanwhile.
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=self.options.max_connections,
            timeout=self.options.timeout_s,
            socket_connect_timeout=self.options.timeout_s,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 1),
        )
        self._pool = pool
        self._client = redis.Redis.from_pool(pool)
        script = files("serving.store").joinpath("append_events.lua").read_text(encoding="utf-8")
        self._append = self._client.register_script(script)

    async def read_rank_inputs(self, user_id: str, item_keys: NDArray[np.int64], timeout_s: float) -> RankInputs:
        """See `FeatureStore`: one pipeline, one round trip."""
        tag = self.keys.tag(user_id)
        # The version before the histories: a write in between then makes the histories newer than the version, never older.
        commands: list[tuple[str, ...]] = [("GET", version_key(tag))]
        for name, start in self._windows:
            commands.append(("GETRANGE", self.keys.history(tag, name), start, "-1"))
        commands.append(("GET", self.keys.user(tag)))
        if len(item_keys):
            commands.append(("MGET", *map(self.keys.item, item_keys.tolist())))
        self.stats.reads += 1
        replies = await self._guard(self._exchange(commands), timeout_s, "read")
        version, user = replies[0], replies[len(self._events) + 1]
        histories = {
            name: self._records(reply, dtype)
            for (name, (_, dtype)), reply in zip(self._events.items(), replies[1:], strict=False)
        }
        items, found = self._items(replies[-1] if len(item_keys) else [], len(item_keys))
        return RankInputs(
            user=self._one_record(user, self._user_dtype),
            histories=histories,
            history_version=self._version(version),
            items=items,
            items_found=found,
        )

    async def _exchange(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        """Replies of `commands`, sent together; an error of one command is its reply.

        What a redis-py pipeline does, without its command objects and callbacks. A connection that is
        left in the middle is closed: the rest of its replies must not answer the next caller.
        """
        packed = pack_commands(commands)
        for last_try in (False, True):
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            done = False
            try:
                await connection.send_packed_command(packed, check_health=False)
                replies = [await _reply(connection) for _ in commands]
                done = True
                return replies
            except (RedisConnectionError, OSError):
                if last_try:  # once more at once covers a pooled connection that the server has closed meanwhile
                    raise
            finally:
                if not done:
                    await connection.disconnect(nowait=True)
                await self._pool.release(connection)
        raise AssertionError("unreachable")

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        """See `FeatureStore`. The arrival time of every event is this call's time."""
        now = time.time_ns() // 1_000_000
        stamped = []
        for event in events:
            record = event.record.copy()
            record[ARRIVAL_MS] = now
            stamped.append((event, record))
        return await self._append_all(stamped)

    async def backfill_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        """As `record_events`, but records keep the arrival time they have; give each user's in arrival order.

        What would come before the newest stored event of its history is counted as a duplicate and not
        stored: histories stay in arrival order, and repeating a whole backfill changes nothing.
        """
        return await self._append_all([(event, event.record) for event in events], backfill=True)

    async def put_items(self, keys: NDArray[np.int64], records: Records) -> None:
        """See `FeatureStore`."""
        names = [self.keys.item(k) for k in keys.tolist()]
        await self._put(names, records)

    async def put_users(self, user_ids: Sequence[str], records: Records) -> None:
        """See `FeatureStore`."""
        await self._put([self.keys.user(self.keys.tag(u)) for u in user_ids], records)

    async def append_outcomes(self, outcomes: Sequence[bytes]) -> None:
        """See `FeatureStore`."""
        pipe = self._client.pipeline(transaction=False)
        for outcome in outcomes:
            pipe.xadd(self.keys.outcomes, {b"o": outcome}, maxlen=self.options.max_outcomes, approximate=True)
        await self._guard(pipe.execute(), self.options.timeout_s, "append outcomes")

    async def read_outcomes(self, after: str, count: int, block_ms: int) -> list[tuple[str, bytes]]:
        """See `FeatureStore`."""
        reply: Any = await self._guard(
            self._client.xread({self.keys.outcomes: after}, count=count, block=block_ms),
            self.options.timeout_s + block_ms / 1000,
            "read outcomes",
        )
        streams = reply.items() if isinstance(reply, dict) else reply
        entries = [entry for _, found in streams for entry in (found[0] if isinstance(reply, dict) else found)]
        return [(identity.decode(), fields[b"o"]) for identity, fields in entries if b"o" in fields]

    async def ping(self) -> None:
        """See `FeatureStore`."""
        await self._guard(self._client.ping(), self.options.timeout_s, "ping")

    async def close(self) -> None:
        """See `FeatureStore`."""
        await self._client.aclose()

    async def _append_all(self, events: Sequence[tuple[UserEvent, Records]], *, backfill: bool = False) -> RecordedEvents:
        by_user: dict[str, list[tuple[UserEvent, Records]]] = {}
        for event, record in events:
            by_user.setdefault(event.user_id, []).append((event, record))

        async def append() -> list[list[int]]:
            users, replies = list(by_user.items()), list[list[int]]()
            for start in range(0, len(users), APPEND_USERS):
                part = users[start : start + APPEND_USERS]
                replies += await self._run_appends([self._append_call(user, own, backfill) for user, own in part])
            return replies

        try:
            replies = await self._guard(append(), self.options.timeout_s, "record events")
        except NoScriptError as error:
            raise StoreUnavailable(f"store: record events: {error}") from error
        versions = {user: int(reply[2]) for user, reply in zip(by_user, replies, strict=True)}
        return RecordedEvents(sum(int(r[0]) for r in replies), sum(int(r[1]) for r in replies), versions)

    async def _run_appends(self, calls: Sequence[tuple[list[str], list[Any]]]) -> list[list[int]]:
        """All users' scripts in one pipeline; loads the script and repeats when the server does not know it."""
        for last_try in (False, True):
            pipe = self._client.pipeline(transaction=False)
            for keys, arguments in calls:
                pipe.evalsha(self._append.sha, len(keys), *keys, *arguments)
            try:
                return await pipe.execute()
            except NoScriptError:
                if last_try:
                    raise
                # Users whose script did run are deduplicated by event id when the pipeline is repeated.
                await self._client.script_load(self._append.script)
        raise AssertionError("unreachable")

    def _append_call(
        self, user_id: str, events: Sequence[tuple[UserEvent, Records]], backfill: bool
    ) -> tuple[list[str], list[Any]]:
        tag = self.keys.tag(user_id)
        types = list(dict.fromkeys(event.type for event, _ in events))
        arguments: list[Any] = [DEDUPLICATION_WINDOW * 8, self.options.history_ttl_s, int(backfill)]
        for name in types:
            declared, dtype = self._events[name]
            arguments += [dtype.itemsize, declared.stored, dtype.fields[ARRIVAL_MS][1] + 1]  # type: ignore[index]
        for event, record in events:
            arguments += [event_id_hash(event.event_id), types.index(event.type) + 1, record.tobytes()]
        return [version_key(tag), window_key(tag), *(self.keys.history(tag, name) for name in types)], arguments

    async def _put(self, names: Sequence[str], records: Records) -> None:
        width, data = records.dtype.itemsize, np.ascontiguousarray(records).tobytes()
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            pipe = self._client.pipeline(transaction=False)
            for i, name in enumerate(part, start):
                pipe.set(name, data[i * width : (i + 1) * width])
            await self._guard(pipe.execute(), max(self.options.timeout_s, 10.0), "put records")

    async def _guard(self, call: Awaitable[T], timeout_s: float, what: str) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except NoScriptError:
            raise
        except TimeoutError as error:
            self.stats.failures += 1
            raise StoreUnavailable(f"store: {what}: no answer within {timeout_s * 1000:.0f} ms") from error
        except (RedisError, OSError) as error:
            self.stats.failures += 1
            raise StoreUnavailable(f"store: {what}: {error or type(error).__name__}") from error

    def _records(self, reply: Any, dtype: np.dtype[np.void]) -> Records:
        """Records of a history's bytes; a value of the wrong type or width counts as empty."""
        if isinstance(reply, bytes) and len(reply) % dtype.itemsize == 0:
            return np.frombuffer(reply, dtype=dtype)
        self._raise_if_refused(reply)
        self.stats.corrupt_values += 1
        return np.empty(0, dtype=dtype)

    def _one_record(self, reply: Any, dtype: np.dtype[np.void]) -> Records | None:
        if reply is None or not dtype.itemsize:
            return None
        if isinstance(reply, bytes) and len(reply) == dtype.itemsize:
            return np.frombuffer(reply, dtype=dtype)
        self._raise_if_refused(reply)
        self.stats.corrupt_values += 1
        return None

    def _items(self, replies: Any, count: int) -> tuple[Records, NDArray[np.bool_]]:
        records, found = missing_records(self._item_dtype, count), np.zeros(count, dtype=bool)
        if not isinstance(replies, list):
            self._raise_if_refused(replies)
            return records, found
        width = self._item_dtype.itemsize
        for i, value in enumerate(replies):
            if isinstance(value, bytes) and len(value) == width:
                found[i] = True
            elif value is not None:
                self.stats.corrupt_values += 1
        if width and found.any():
            records[found] = np.frombuffer(b"".join(compress(replies, found.tolist())), dtype=self._item_dtype)
        return records, found

    def _version(self, reply: Any) -> int:
        if reply is None:
            return 0
        if isinstance(reply, bytes) and reply.isdigit():
            return int(reply)
        self._raise_if_refused(reply)
        self.stats.corrupt_values += 1
        return 0

    def _raise_if_refused(self, reply: Any) -> None:
        """A server that refuses to serve (loading, out of memory, no permission) is unavailable; wrong data is not."""
        if isinstance(reply, RedisError) and not str(reply).startswith("WRONGTYPE"):
            self.stats.failures += 1
            raise StoreUnavailable(f"store: read: {reply}") from reply


def pack_commands(commands: Sequence[tuple[str, ...]]) -> bytes:
    """RESP of several commands."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = argument.encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


async def _reply(connection: Any) -> Any:
    """The next reply; an error the server sent is returned, not raised."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _without_secrets(url: str) -> str:
    """Scheme, host and path: no user, no password, and no query, which may hold one too."""
    scheme, separator, rest = url.partition("#")[0].partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
