"""A schema, events and real servers for the store tests."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

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
def debian_redis(directory: Path) -> Iterator[str]:
    """Debian's redis-server on a Unix socket; skips the test when it is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("not verified here: redis-server is not installed (make system-deps)")
    socket = directory / "r.sock"
    arguments = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(directory)]
    process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.005)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def embedded() -> Iterator[str]:
    """The bundled Valkey."""
    server = EmbeddedValkey()
    try:
        yield server.url
    finally:
        server.close()
