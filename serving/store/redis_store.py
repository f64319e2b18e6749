"""The store on Redis-compatible servers (Redis ≥ 7, Valkey): one round trip per Rank, atomic idempotent appends.

Called by the core on the event loop; where commands go is the business of `nodes`. Histories are strings of fixed-width
records that go straight into numpy; nothing is parsed per event. Every fault of the server, the
network or a time-out becomes `StoreUnavailable`; data that does not fit its layout counts as missing
and is counted, so a broken key never breaks a Rank.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence, Set
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import NoScriptError, RedisError

from model.history import read_window
from model.records import ARRIVAL_MS, Records, event_dtype, feature_dtype, missing_records
from model.schema import Schema
from serving.core.errors import StoreUnavailable
from serving.core.types import RecordedEvents, UserEvent
from serving.store.base import RankInputs
from serving.store.keys import StoreKeys, event_id_hash, served_key, user_hash, version_key
from serving.store.nodes import Command, Nodes, open_nodes, without_secrets
from serving.store.scripts import APPEND_EVENTS, APPEND_OUTCOMES, Script

T = TypeVar("T")
ScriptCall = tuple[list[str], list[Any]]
"""Keys and arguments of a script."""

DEDUPLICATION_WINDOW = 1024
CHUNK = 2000
BULK_TIMEOUT_S = 10.0
FORGOTTEN_MS = 86_400_000
"""How long it is remembered that a user was deleted, for replicas that were not listening then."""

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

    `replicas`: copies that must have an event or outcome before it is acknowledged (0: the primary alone).

    `outcomes_kept`: outcomes that stay in their stream once they are counted, for the training log; with as many more that are
    not counted yet, further ones are refused. `outcomes_counted`: whether there is a feedback consumer; if not, the oldest go.

    With `max_connections` in use further calls wait for one, inside their own time limit.
    """

    prefix: str = "kunlun"
    history_ttl_s: int = 0
    timeout_s: float = 2.0
    outcomes_kept: int = 1_000_000
    outcomes_counted: bool = True
    max_served: int = 1_000_000
    max_connections: int = 64
    replicas: int = 0


class RedisStore:
    """Implements `serving.store.base.FeatureStore`."""

    def __init__(self, url: str, schema: Schema, options: RedisOptions | None = None) -> None:
        self.schema, self.options = schema, options or RedisOptions()
        self.url, self.public_url = url, without_secrets(url)
        self.keys = StoreKeys(schema, self.options.prefix)
        self.stats = StoreStats()
        self._item_dtype, self._user_dtype = feature_dtype(schema.item_features), feature_dtype(schema.user)
        self._events = {e.name: (e, event_dtype(e)) for e in schema.events}
        self._windows = [(n, str(-read_window(e.cap) * dtype.itemsize)) for n, (e, dtype) in self._events.items()]
        self.nodes: Nodes = open_nodes(url, max_connections=self.options.max_connections, timeout_s=self.options.timeout_s)

    async def read_rank_inputs(
        self, user_id: str, item_keys: NDArray[np.int64], timeout_s: float, *, with_user: bool = True
    ) -> RankInputs:
        """See `FeatureStore`: one pipeline, one round trip."""
        tag, with_user = self.keys.tag(user_id), with_user and self._user_dtype.itemsize > 0
        # The version before the histories: a write in between then makes the histories newer than the version, never older.
        commands: list[Command] = [("GET", version_key(tag))]
        for name, start in self._windows:
            commands.append(("GETRANGE", self.keys.history(tag, name), start, "-1"))
        if with_user:
            commands.append(("GET", self.keys.user(user_id)))
        if len(item_keys):
            commands.append(("MGET", *map(self.keys.item, item_keys.tolist())))
        self.stats.reads += 1
        replies = await self._guard(self.nodes.exchange(commands), timeout_s, "read")
        histories = {
            name: self._records(reply, dtype)
            for (name, (_, dtype)), reply in zip(self._events.items(), replies[1:], strict=False)
        }
        items, found = self._items(replies[-1] if len(item_keys) else [], len(item_keys))
        return RankInputs(
            user=self._one_record(replies[len(self._events) + 1], self._user_dtype) if with_user else None,
            histories=histories,
            history_version=self._version(replies[0]),
            items=items,
            items_found=found,
        )

    async def read_items(self, keys: NDArray[np.int64], timeout_s: float) -> tuple[Records, NDArray[np.bool_]]:
        """See `FeatureStore`."""
        if not len(keys):
            return self._items([], 0)
        command = ("MGET", *map(self.keys.item, keys.tolist()))
        (reply,) = await self._guard(self.nodes.exchange([command]), timeout_s, "read items")
        return self._items(reply, len(keys))

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
        await self._put([self.keys.user(u) for u in user_ids], records)

    async def delete_user(self, user_id: str) -> bool:
        """See `FeatureStore`."""
        (known,) = await self._write([("SMEMBERS", self.keys.layouts)], self.options.timeout_s, "delete user")
        layouts, tag = {name.decode() for name in known} | set(self.keys.own_layouts), self.keys.tag(user_id)
        logged = await self._delete_served(tag)
        names = [version_key(tag), *(self.keys.of_layout(user_id, layout) for layout in sorted(layouts))]
        (deleted,) = await self._write([("UNLINK", *names)], self.options.timeout_s, "delete user")
        now, forgotten = time.time_ns() // 1_000_000, self.keys.forgotten  # last: who hears of it finds nothing any more
        tell: list[Command] = [("ZADD", forgotten, now, user_hash(user_id))]
        tell.append(("ZREMRANGEBYSCORE", forgotten, "-inf", now - FORGOTTEN_MS))
        await self._write(tell, self.options.timeout_s, "delete user")
        return bool(deleted or logged)

    async def forgotten_users(self) -> Set[str]:
        """Hashes of the users who were deleted within a day."""
        command = ("ZRANGE", self.keys.forgotten, 0, -1)
        (reply,) = await self._write([command], self.options.timeout_s, "read forgotten users")
        return {name.decode() for name in reply}

    async def announce_layouts(self) -> None:
        """Note the record layouts in use, so that `delete_user` finds those of other versions of the schema, too."""
        await self._write([("SADD", self.keys.layouts, *self.keys.own_layouts)], self.options.timeout_s, "announce layouts")

    async def append_outcomes(self, outcomes: Sequence[bytes]) -> None:
        """See `FeatureStore`."""
        kept = self.options.outcomes_kept
        call = ([self.keys.outcomes], [2 * kept, 0 if self.options.outcomes_counted else kept, *outcomes])
        await self._guard(self._run(APPEND_OUTCOMES, [call], "append outcomes"), self.options.timeout_s, "append outcomes")

    async def read_outcomes(self, after: str, count: int, block_ms: int) -> list[tuple[str, bytes]]:
        """See `FeatureStore`."""
        command = ("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", self.keys.outcomes, after)
        (reply,) = await self._write([command], self.options.timeout_s + block_ms / 1000, "read outcomes")
        return [(identity, fields.get(b"o", b"")) for identity, fields in stream_entries(reply)]

    async def append_served(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Append (user id, entry) pairs to the served log (field `s`), and note where they are, for `delete_user`."""
        served, timeout_s = self.keys.served, self.options.timeout_s
        commands: list[Command] = [
            ("XADD", served, "MAXLEN", "~", self.options.max_served, "*", "s", entry) for _, entry in entries
        ]
        *identities, oldest = await self._write(
            [*commands, ("XRANGE", served, "-", "+", "COUNT", 1)], timeout_s, "append to the served log"
        )
        first = _entry_ms((*(identity for identity, _ in oldest), *identities)[0])
        notes: list[Command] = []
        for (user_id, _), identity in zip(entries, identities, strict=True):
            key = served_key(self.keys.tag(user_id))
            notes += [("ZADD", key, _entry_ms(identity), identity), ("ZREMRANGEBYSCORE", key, "-inf", f"({first}")]
        await self._write(notes, timeout_s, "append to the served log")

    async def _delete_served(self, tag: str) -> int:
        """Delete a user's entries in the served log, and the note of them; returns how many were noted."""
        key = served_key(tag)
        (identities,) = await self._write([("ZRANGE", key, 0, -1)], self.options.timeout_s, "delete user")
        for start in range(0, len(identities), CHUNK):
            command = ("XDEL", self.keys.served, *identities[start : start + CHUNK])
            await self._write([command], self.options.timeout_s, "delete user")
        await self._write([("UNLINK", key)], self.options.timeout_s, "delete user")
        return len(identities)

    async def execute(self, commands: Sequence[Command], what: str) -> list[Any]:
        """Replies of commands for maintenance, sent together; a key of the wrong type is a reply, other errors are raised."""
        replies = await self._guard(self.nodes.exchange(commands), max(self.options.timeout_s, BULK_TIMEOUT_S), what)
        self._raise_first([reply for reply in replies if not is_wrong_type(reply)], what)
        return replies

    async def run_script(self, script: Script, calls: Sequence[ScriptCall], what: str) -> list[Any]:
        """Replies of one script called for several users, sent together, of which none may fail."""
        return await self._guard(self._run(script, calls, what), max(self.options.timeout_s, BULK_TIMEOUT_S), what)

    async def ping(self) -> None:
        """See `FeatureStore`."""
        replies = await self._guard(self.nodes.on_every_node("PING"), self.options.timeout_s, "ping")
        self._raise_first(replies, "ping")

    async def close(self) -> None:
        """See `FeatureStore`."""
        await self.nodes.close()

    async def _append_all(self, events: Sequence[tuple[UserEvent, Records]], *, backfill: bool = False) -> RecordedEvents:
        by_user: dict[str, list[tuple[UserEvent, Records]]] = {}
        for event, record in events:
            by_user.setdefault(event.user_id, []).append((event, record))

        async def append() -> list[list[int]]:
            users, replies = list(by_user.items()), list[list[int]]()
            for start in range(0, len(users), APPEND_USERS):
                part = users[start : start + APPEND_USERS]
                calls = [self._append_call(user, own, backfill) for user, own in part]
                replies += await self._run(APPEND_EVENTS, calls, "record events")
            return replies

        replies = await self._guard(append(), self.options.timeout_s, "record events")
        versions = {user: int(reply[2]) for user, reply in zip(by_user, replies, strict=True)}
        return RecordedEvents(sum(int(r[0]) for r in replies), sum(int(r[1]) for r in replies), versions)

    async def _run(self, script: Script, calls: Sequence[ScriptCall], what: str) -> list[Any]:
        """Replies of all calls, in one pipeline; loads the script and repeats those whose server did not know it."""
        commands = [("EVALSHA", script.sha, len(keys), *keys, *arguments) for keys, arguments in calls]
        replies = await self.nodes.exchange(commands, self.options.replicas)
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            await self.nodes.on_every_node("SCRIPT", "LOAD", script.source)
            again = await self.nodes.exchange([commands[at] for at in unknown], self.options.replicas)
            for at, reply in zip(unknown, again, strict=True):
                replies[at] = reply
        self._raise_first(replies, what)
        return replies

    def _append_call(self, user_id: str, events: Sequence[tuple[UserEvent, Records]], backfill: bool) -> ScriptCall:
        tag = self.keys.tag(user_id)
        types = list(dict.fromkeys(event.type for event, _ in events))
        arguments: list[Any] = [DEDUPLICATION_WINDOW * 8, self.options.history_ttl_s, int(backfill)]
        for name in types:
            declared, dtype = self._events[name]
            arguments += [dtype.itemsize, declared.stored, dtype.fields[ARRIVAL_MS][1] + 1]  # type: ignore[index]
        for event, record in events:
            arguments += [event_id_hash(event.event_id), types.index(event.type) + 1, record.tobytes()]
        return [version_key(tag), self.keys.window(tag), *(self.keys.history(tag, name) for name in types)], arguments

    async def _put(self, names: Sequence[str], records: Records) -> None:
        width, data = records.dtype.itemsize, np.ascontiguousarray(records).tobytes()
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            commands = [("SET", name, data[i * width : (i + 1) * width]) for i, name in enumerate(part, start)]
            await self._write(commands, max(self.options.timeout_s, BULK_TIMEOUT_S), "put records")

    async def _write(self, commands: Sequence[Command], timeout_s: float, what: str, replicas: int = 0) -> list[Any]:
        """Replies of commands of which none may fail."""
        replies = await self._guard(self.nodes.exchange(commands, replicas), timeout_s, what)
        self._raise_first(replies, what)
        return replies

    def _raise_first(self, replies: Sequence[Any], what: str) -> None:
        for reply in replies:
            if isinstance(reply, RedisError):
                self.stats.failures += 1
                raise StoreUnavailable(f"store: {what}: {reply}") from reply

    async def _guard(self, call: Awaitable[T], timeout_s: float, what: str) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except TimeoutError as error:
            self.stats.failures += 1
            raise StoreUnavailable(f"store: {what}: no answer within {timeout_s * 1000:.0f} ms") from error
        except (RedisError, OSError) as error:
            self.stats.failures += 1
            raise StoreUnavailable(f"store: {what}: {error or type(error).__name__}") from error

    def _records(self, reply: Any, dtype: np.dtype[np.void]) -> Records:
        """Records of a history's bytes; a value of the wrong type or width counts as empty."""
        if (records := records_of_bytes(reply, dtype)) is not None:
            return records
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
        if isinstance(reply, RedisError) and not is_wrong_type(reply):
            self.stats.failures += 1
            raise StoreUnavailable(f"store: read: {reply}") from reply


def records_of_bytes(value: object, dtype: np.dtype[np.void]) -> Records | None:
    """A history's records; None when the value is something else."""
    return np.frombuffer(value, dtype) if isinstance(value, bytes) and len(value) % dtype.itemsize == 0 else None


def _entry_ms(identity: bytes) -> int:
    """When an entry of a stream was appended, ms since the epoch."""
    return int(identity.partition(b"-")[0])


def is_wrong_type(reply: Any) -> bool:
    """True for the error that a key holds another kind of value than the command is for."""
    return isinstance(reply, RedisError) and str(reply).startswith("WRONGTYPE")


def stream_entries(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """(id, fields) of every entry of an XREAD or XREADGROUP reply of one stream, of either protocol version."""
    streams = reply.items() if isinstance(reply, dict) else reply or ()
    entries = []
    for _, found in streams:
        for identity, fields in found:
            pairs = fields or []  # an entry that has been deleted meanwhile has none
            entries.append((identity.decode(), dict(zip(pairs[::2], pairs[1::2], strict=True))))
    return entries
