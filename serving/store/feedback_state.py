"""Where the feedback consumer keeps everything: its lease, its place in the outcome stream, bitmaps, sums.

``<prefix>:{feedback}:outcomes``         stream of reported outcomes
``<prefix>:{feedback}:lease``            token of the consumer that owns the rest, for a few seconds
``<prefix>:{feedback}:state``            commits and entries counted so far, position in the stream, first minute still open
``<prefix>:{feedback}:minutes``          sorted set of the minutes that have a bucket
``<prefix>:{feedback}:seen:<minute>``    bitmaps of the receipts issued in a minute, by identity
``<prefix>:{feedback}:bucket:<minute>``  sums of the lists served in a minute
``<prefix>:{feedback}:reported``         sums of everything ever reported
``<prefix>:{feedback}:matured``          sums of the minutes that have matured
``<prefix>:{feedback}:versions``         when a version was last heard of, in ms

All keys share a hash tag, so one atomic script commits a batch on a Cluster, too. A commit says which one it follows;
the store refuses it when another consumer has committed since. So every outcome counts once, whoever dies when.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redis.exceptions import RedisError

from serving.store.nodes import Command
from serving.store.redis_store import RedisStore
from serving.store.scripts import COMMIT_FEEDBACK, LEASE, STORE_TIME

Hash = Mapping[bytes, bytes]
REPORTED, MATURED, VERSIONS = "reported", "matured", "versions"


def seen_hash(minute: int) -> str:
    """Name of a minute's bitmaps."""
    return f"seen:{minute}"


def bucket_hash(minute: int) -> str:
    """Name of a minute's sums."""
    return f"bucket:{minute}"


@dataclass(frozen=True)
class Place:
    """How far the consumer is: `commits` so far, the id of the last outcome it has counted, the first minute still open."""

    commits: int = 0
    position: str = "0"
    first_open: int = 0


@dataclass
class Changes:
    """One commit: fields of hashes (an empty value deletes one), hashes to drop, minutes that get or lose their bucket."""

    hashes: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    minutes: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)


class FeedbackState:
    """The consumer's state in `store`. Every method may raise `StoreUnavailable`, and `ValueError` for what is not ours."""

    def __init__(self, store: RedisStore, lease_s: float) -> None:
        self._store, self._lease_ms = store, round(lease_s * 1000)
        self._token = secrets.token_hex(8)

    def _key(self, name: str) -> str:
        return self._store.keys.feedback + name

    async def acquire(self) -> bool:
        """Take or renew the lease; False while somebody else has it."""
        return await self._lease(self._lease_ms)

    async def release(self) -> None:
        """Give the lease back, if it is held, so that another consumer takes over at once."""
        await self._lease(0)

    async def _lease(self, duration_ms: int) -> bool:
        (reply,) = await self._store.run_script(LEASE, [([self._key("lease")], [self._token, duration_ms])], "lease")
        return bool(reply)

    async def place(self) -> Place:
        """Where the last commit has left off."""
        found = await self.read(["state"])
        state = {name.decode(): value.decode() for name, value in found[0].items()}
        if not state:
            return Place()
        return Place(int(state["commits"]), state["position"], int(state["first_open"]))

    async def minutes(self, first: int, last: int) -> list[int]:
        """Minutes that have a bucket, from `first` to `last`."""
        (reply,) = await self._execute([("ZRANGEBYSCORE", self._key("minutes"), first, last)])
        return [int(member) for member in reply]

    async def read(self, names: Sequence[str]) -> list[dict[bytes, bytes]]:
        """Whole hashes."""
        replies = await self._execute([("HGETALL", self._key(name)) for name in names])
        return [_pairs(name, reply) for name, reply in zip(names, replies, strict=True)]

    async def read_fields(self, fields: Mapping[str, Sequence[bytes]]) -> dict[str, dict[bytes, bytes]]:
        """Fields of hashes; those that are not there are left out."""
        wanted = [(name, own) for name, own in fields.items() if own]
        replies = await self._execute([("HMGET", self._key(name), *own) for name, own in wanted])
        found = {}
        for (name, own), reply in zip(wanted, replies, strict=True):
            if isinstance(reply, RedisError):
                raise ValueError(f"feedback state: {name}: expected a hash ({reply})")
            found[name] = {f: value for f, value in zip(own, reply, strict=True) if value is not None}
        return found

    async def commit(self, before: Place, after: Place, changes: Changes, counted: int = 0) -> Place | None:
        """All of `changes`; None when another consumer has taken over. `counted`: entries of the stream this is about."""
        keys = [self._key(name) for name in ("lease", "state", "outcomes", "minutes")]
        keys += [self._key(name) for name in (*changes.hashes, *changes.dropped)]
        arguments: list[Any] = [self._token, self._lease_ms, before.commits, after.position, after.first_open]
        arguments += [counted, self._store.options.outcomes_kept]
        arguments.append(len(changes.hashes))
        for fields in changes.hashes.values():
            arguments.append(len(fields))
            for pair in fields.items():
                arguments += pair
        for minutes in (changes.gone, changes.minutes):
            arguments += [len(minutes), *sorted(minutes)]
        (done,) = await self._store.run_script(COMMIT_FEEDBACK, [(keys, arguments)], "commit feedback")
        return replace(after, commits=before.commits + 1) if done else None

    async def waiting_ms(self, place: Place) -> int:
        """How long the first outcome that is not counted yet has waited; 0 when there is none."""
        now_ms = await self.now_ms()
        (waiting,) = await self._execute([("XRANGE", self._key("outcomes"), f"({place.position}", "+", "COUNT", 1)])
        return max(1, now_ms - int(waiting[0][0].partition(b"-")[0])) if waiting else 0

    async def now_ms(self) -> int:
        """The store's own clock, which stamps the entries of its streams; ms since the epoch."""
        (reply,) = await self._store.run_script(STORE_TIME, [([self._key("state")], [])], "time")
        return int(reply[0]) * 1000 + int(reply[1]) // 1000

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        return await self._store.execute(commands, "feedback") if commands else []


def _pairs(name: str, reply: Any) -> dict[bytes, bytes]:
    """A hash, of either protocol version."""
    if isinstance(reply, RedisError):
        raise ValueError(f"feedback state: {name}: expected a hash ({reply})")
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
