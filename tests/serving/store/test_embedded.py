"""The embedded store's data directory: it survives restarts, belongs to one server, and is loaded before it serves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import redis
from store_fixtures import SCHEMA, event

from serving.core.errors import StoreUnavailable
from serving.store import embedded
from serving.store.embedded import EmbeddedValkey
from serving.store.open import open_store

NO_ITEMS = np.empty(0, dtype=np.int64)


async def record(data_dir: Path, users: int = 1) -> None:
    """One click of each of `users` users."""
    store = await open_store("embedded", SCHEMA, data_dir=data_dir)
    await store.record_events([event("e", f"u{i}", 1, 1) for i in range(users)])
    await store.close()


async def version(data_dir: Path, user: str) -> int:
    """The user's history version after a restart."""
    store = await open_store("embedded", SCHEMA, data_dir=data_dir)
    found = (await store.read_rank_inputs(user, NO_ITEMS, 1.0)).history_version
    await store.close()
    return found


def test_a_store_with_a_directory_survives_a_restart(tmp_path: Path) -> None:
    asyncio.run(record(tmp_path))
    assert asyncio.run(version(tmp_path, "u0")) == 1


def test_every_write_can_be_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    for sync in ("always", "everysec"):
        server = EmbeddedValkey(tmp_path, sync=sync)  # type: ignore[arg-type]
        client = redis.Redis.from_url(server.url)
        assert client.config_get("append*")["appendfsync"] == sync
        client.close()
        server.close()


def test_a_store_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os\nfrom pathlib import Path\nfrom serving.store.embedded import EmbeddedValkey\n"
        f"print(EmbeddedValkey(Path({str(tmp_path)!r})).pid, flush=True)\nos._exit(1)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30).stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < deadline, "the store outlives its parent"
        time.sleep(0.02)


def test_a_directory_belongs_to_one_server_until_it_ends(tmp_path: Path) -> None:
    first = EmbeddedValkey(tmp_path)
    try:
        with pytest.raises(StoreUnavailable, match=f"data_dir {tmp_path} is in use by another server"):
            EmbeddedValkey(tmp_path)
    finally:
        first.close()
    EmbeddedValkey(tmp_path).close()


def test_a_directory_is_free_again_after_a_crash(tmp_path: Path) -> None:
    crashed = EmbeddedValkey(tmp_path)
    os.kill(crashed.pid, signal.SIGKILL)
    crashed.close()
    EmbeddedValkey(tmp_path).close()


def test_a_data_dir_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match=r"data_dir .*file: File exists"):
        EmbeddedValkey(tmp_path / "file")


def test_a_store_that_loads_its_data_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(record(tmp_path, users=3000))
    plain = embedded._arguments
    slow = ["--key-load-delay", "20"]  # microseconds for each command of the append-only file
    monkeypatch.setattr(embedded, "_arguments", lambda *a, **k: [*plain(*a, **k), *slow])
    assert asyncio.run(version(tmp_path, "u2999")) == 1
