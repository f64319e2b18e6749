"""The servers behind a store's URL: which of them a command goes to, and the one round trip it takes.

`open_nodes` reads the URL: one server, a primary that Sentinels name, or a Cluster. Commands of one
call leave together, at most one request per node, and their replies come back in order; an error that
the server sent is the command's reply. What broke on the way (a connection that was closed, a slot that
has moved, a primary that has become a replica) is repeated once on fresh connections or the new topology,
so commands must be safe to repeat. A connection that is left in the middle of its replies is closed: the
rest must not answer the next caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

Command = tuple[Any, ...]
"""Name and arguments (str, bytes, int); the key is the first argument, of EVALSHA the third, of XREAD the last but one."""

MULTIPLE_KEYS = "MGET"
REPLICATION_MS = 1000
_KEY_AT = {"EVALSHA": 3, "XREAD": -2, "XREADGROUP": -2, "XGROUP": 2, "XINFO": 2}
_ELSEWHERE = (MovedError, AskError, ClusterDownError, MasterDownError, TryAgainError, ReadOnlyError)
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


class ReplicasMissing(RedisError):
    """A write that too few replicas have."""


class Nodes(Protocol):
    """One server or several, addressed by key."""

    async def exchange(self, commands: Sequence[Command], replicas: int = 0) -> list[Any]:
        """Replies of `commands`, sent together. Raises `RedisError` or `OSError` when a server cannot be reached.

        With `replicas`, also when fewer replicas than that have what was written (`WAIT`).
        """
        ...

    async def on_every_node(self, *command: Any) -> list[Any]:
        """Replies of one command without a key, from every primary."""
        ...

    def scan(self, pattern: str, count: int) -> AsyncIterator[list[bytes]]:
        """Names of keys like `pattern`, those among about `count` keys at a time; a key that is there throughout is named."""
        ...

    async def trackers(self) -> list[AbstractConnection]:
        """A new RESP3 connection to every primary, the caller's to close."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


def open_nodes(url: str, *, max_connections: int, timeout_s: float) -> Nodes:
    """The servers of `url`; connects to none yet. Raises `ValueError`, whose text may hold a password.

    ``redis://[user:password@]host:port/db``, ``rediss://`` for TLS, ``unix:///path``;
    ``redis+sentinel://[user:password@]host:port,host:port/service[/db]``;
    ``redis+cluster://[user:password@]host:port,host:port``. TLS files go in the query
    (``?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…``).
    """
    scheme = url.partition("://")[0]
    # No time limit of the sockets' own: every call has one for all it does, and theirs costs a task per command.
    options: dict[str, Any] = {"socket_connect_timeout": timeout_s, "socket_timeout": None}
    if scheme.endswith("+cluster"):
        return ClusterNodes(url, options | {"max_connections": max_connections})
    options |= {"retry": Retry(NoBackoff(), 1)}
    if scheme.endswith("+sentinel"):
        return OneNode(_sentinel_pool(url, options), max_connections)
    parsed: dict[str, Any] = dict(parse_url(url))
    return OneNode(ConnectionPool(**parsed | options), max_connections)


class OneNode:
    """A single server, or the primary that Sentinels name; `max_connections` in use, further calls wait for one.

    Keeps its connections itself: redis-py's pool locks, and looks for unread data, before every use.
    """

    def __init__(self, pool: ConnectionPool, max_connections: int) -> None:
        self._pool, self._free = pool, asyncio.Semaphore(max_connections)
        self._idle: list[Any] = []

    async def exchange(self, commands: Sequence[Command], replicas: int = 0) -> list[Any]:
        """See `Nodes`."""
        packed = pack_commands(commands)
        async with self._free:
            connection = self._idle.pop() if self._idle else self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                for last_try in (False, True):
                    try:
                        replies = await _round_trip(connection, packed, len(commands), replicas)
                    except (RedisConnectionError, OSError):
                        if last_try:  # once more at once covers a connection that the server has closed meanwhile
                            raise
                        continue
                    if last_try or not any(isinstance(reply, ReadOnlyError) for reply in replies):
                        return replies
                    await self._disconnect(connection)  # the primary has become a replica: ask who is the primary now
            finally:
                self._idle.append(connection)
        raise AssertionError("unreachable")

    async def on_every_node(self, *command: Any) -> list[Any]:
        """See `Nodes`."""
        return await self.exchange([command])

    async def scan(self, pattern: str, count: int) -> AsyncIterator[list[bytes]]:
        """See `Nodes`."""
        async for names in _scan(lambda command: self.exchange([command]), pattern, count):
            yield names

    async def trackers(self) -> list[AbstractConnection]:
        """See `Nodes`."""
        return [self._pool.connection_class(**self._pool.connection_kwargs | {"protocol": 3})]

    async def close(self) -> None:
        """See `Nodes`."""
        await self._disconnect()
        await self._pool.aclose()

    async def _disconnect(self, *others: Any) -> None:
        for connection in (*self._idle, *others):
            await connection.disconnect(nowait=True)


class ClusterNodes:
    """A Cluster. Its topology is read at the first call, and again when a node has gone or a slot has moved."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        first, *others = _hosts(url)
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        scheme = parts.scheme.removesuffix("+cluster")
        query = f"?{parts.query}" if parts.query else ""
        self._cluster = RedisCluster.from_url(
            f"{scheme}://{credentials}{at}{first[0]}:{first[1]}{query}",
            startup_nodes=[ClusterNode(host, port) for host, port in others],
            require_full_coverage=False,
            **options,
        )
        self._ready = False

    async def exchange(self, commands: Sequence[Command], replicas: int = 0) -> list[Any]:
        """See `Nodes`; MGET is cut into one GET per key."""
        single: list[tuple[Command, str | bytes]] = []
        for command in commands:
            if command[0] == MULTIPLE_KEYS:
                single += [(("GET", key), key) for key in command[1:]]
            else:
                single.append((command, command[_KEY_AT.get(command[0], 1)]))
        replies: list[Any] = [None] * len(single)
        waiting = list(range(len(single)))
        for last_try in (False, True):
            await self._initialize(again=last_try)
            waiting = await self._send(single, waiting, replies, replicas, last_try)
            if not waiting:
                break
        whole, at = [], 0
        for command in commands:
            if command[0] == MULTIPLE_KEYS:
                whole.append(replies[at : at + len(command) - 1])
                at += len(command) - 1
            else:
                whole.append(replies[at])
                at += 1
        return whole

    async def on_every_node(self, *command: Any) -> list[Any]:
        """See `Nodes`."""
        await self._initialize()
        packed = pack_commands([command])
        return [(await self._on(node, packed, 1))[0] for node in self._cluster.get_primaries()]

    async def scan(self, pattern: str, count: int) -> AsyncIterator[list[bytes]]:
        """See `Nodes`; keys of a slot that moves meanwhile may be missed."""
        await self._initialize(again=True)
        for node in self._cluster.get_primaries():
            async for names in _scan(lambda command, node=node: self._on(node, pack_commands([command]), 1), pattern, count):  # type: ignore[misc]
                yield names

    async def trackers(self) -> list[AbstractConnection]:
        """See `Nodes`."""
        await self._initialize(again=True)
        return [
            node.connection_class(**node.connection_kwargs | {"protocol": 3, "retry": Retry(NoBackoff(), 0)})
            for node in self._cluster.get_primaries()
        ]

    async def close(self) -> None:
        """See `Nodes`."""
        await self._cluster.aclose()

    async def _initialize(self, *, again: bool = False) -> None:
        if not self._ready:
            await self._cluster.initialize()
            self._ready = True
        elif again:
            await self._cluster.nodes_manager.initialize()

    async def _send(
        self,
        single: Sequence[tuple[Command, str | bytes]],
        numbers: Sequence[int],
        replies: list[Any],
        replicas: int,
        last_try: bool,
    ) -> list[int]:
        """Fill in the replies of `numbers`; returns those that are to be sent again to the new topology."""
        by_node: dict[ClusterNode, list[int]] = {}
        for number in numbers:
            key = single[number][1]
            slot = key_slot(key.encode() if isinstance(key, str) else key)
            by_node.setdefault(self._cluster.nodes_manager.get_node_from_slot(slot), []).append(number)
        again: list[int] = []
        errors: list[Exception] = []
        fatal: list[RedisError] = []

        async def on(node: ClusterNode, own: Sequence[int]) -> None:
            try:
                found = await self._on(node, pack_commands([single[number][0] for number in own]), len(own), replicas)
            except (RedisConnectionError, OSError) as error:
                errors.append(error)
                again.extend(own)
                return
            except RedisError as error:  # such as `ReplicasMissing`: it is written, so it is not sent again
                fatal.append(error)
                return
            for number, reply in zip(own, found, strict=True):
                if isinstance(reply, AskError):  # the slot is on its way: this key is there already
                    reply = await self._asking(reply, single[number][0], replicas)
                if isinstance(reply, _ELSEWHERE) and not last_try:
                    again.append(number)
                else:
                    replies[number] = reply

        async with asyncio.TaskGroup() as tasks:
            for node, own in by_node.items():
                tasks.create_task(on(node, own))
        if fatal or (errors and last_try):
            raise (fatal or errors)[0]
        return again

    async def _asking(self, error: AskError, command: Command, replicas: int) -> Any:
        node = self._cluster.get_node(host=error.host, port=error.port)
        if node is None:
            return error
        return (await self._on(node, pack_commands([("ASKING",), command]), 2, replicas))[1]

    async def _on(self, node: ClusterNode, packed: bytes, count: int, replicas: int = 0) -> list[Any]:
        connection = node.acquire_connection()
        try:
            return await _round_trip(connection, packed, count, replicas)
        finally:
            node.release(connection)


async def _scan(call: Callable[[Command], Awaitable[list[Any]]], pattern: str, count: int) -> AsyncIterator[list[bytes]]:
    cursor: int | bytes = 0
    while True:
        (reply,) = await call(("SCAN", cursor, "MATCH", pattern, "COUNT", count))
        if isinstance(reply, RedisError):
            raise reply
        cursor, names = reply
        yield names
        if not int(cursor):
            return


async def _round_trip(connection: Any, packed: bytes, count: int, replicas: int = 0) -> list[Any]:
    """`count` replies; closes the connection unless all of them have been read."""
    done, copies = False, 0
    wait = pack_commands([("WAIT", replicas, REPLICATION_MS)]) if replicas else b""
    try:
        if not connection.is_connected:
            await connection.connect()  # here, since it is this that asks the Sentinels for the primary
        await connection.send_packed_command(packed + wait, check_health=False)
        replies = [await _reply(connection) for _ in range(count)]
        if replicas:
            copies = await connection.read_response()
        done = True
    finally:
        if not done:
            await connection.disconnect(nowait=True)
    if copies < replicas:
        raise ReplicasMissing(f"written, but {copies} of {replicas} replicas had it within {REPLICATION_MS} ms")
    return replies


async def _reply(connection: Any) -> Any:
    """The next reply; an error the server sent is returned, not raised."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def pack_commands(commands: Sequence[Command]) -> bytes:
    """RESP of several commands."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def without_secrets(url: str) -> str:
    """Scheme, hosts and path: no user, no password, and no query, which may hold one too."""
    scheme, separator, rest = url.partition("#")[0].partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _sentinel_pool(url: str, options: dict[str, Any]) -> SentinelConnectionPool:
    parts = urlsplit(url)
    service, _, database = unquote(parts.path).strip("/").partition("/")
    if not service:
        raise ValueError("a Sentinel URL ends in the name of the service")
    options = options | dict(parse_qsl(parts.query))
    sentinel_options = {"socket_connect_timeout": options["socket_connect_timeout"]}
    sentinel = Sentinel(_hosts(url), sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        service,
        sentinel,
        ssl=parts.scheme.startswith("rediss"),
        db=int(database or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        **options,
    )


def _hosts(url: str) -> list[tuple[str, int]]:
    """Every ``host[:port]`` of a list in a URL; raises `ValueError`."""
    listed = urlsplit(url).netloc.rpartition("@")[2].split(",")
    hosts = []
    for entry in listed:
        parts = urlsplit(f"//{entry}")
        if not parts.hostname:
            raise ValueError(f"expected host:port, found {entry!r}")
        hosts.append((parts.hostname, parts.port or 6379))
    return hosts


__all__ = ["SCHEMES", "Command", "Nodes", "open_nodes", "pack_commands", "without_secrets"]
