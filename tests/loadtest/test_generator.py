"""The generator against a real server: everything planned is sent, and a slow server cannot slow the load down."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from protocol_server import ProtocolServer, protocol_server

from kunlun.client import RankQuery
from loadtest.openloop.generator import CANCELLED, Sample
from loadtest.openloop.messages import read_messages, write_messages
from loadtest.openloop.workload import Workload

WORKLOAD = Workload(rate=60, seconds=3, seed=7, deadline_ms=5000)
ITEMS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


def generate(server: ProtocolServer, directory: Path, **changes: Any) -> tuple[dict[str, Any], Sample]:
    """One run of 150 requests from a child process."""
    messages = [RankQuery(f"u{n % 20}", ITEMS, columns={"bid": [1.0] * 4}).message().SerializeToString() for n in range(150)]
    write_messages(directory / "requests.bin", messages)
    command = [sys.executable, "-m", "loadtest.openloop", "--server", server.address]
    command += ["--workload", WORKLOAD.model_copy(update=changes).model_dump_json(), "--output", str(directory / "a.npz")]
    command += ["--messages", str(directory / "requests.bin"), "--replies", str(directory / "replies.bin")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return json.loads(done.stdout.strip().splitlines()[-1]), Sample.load(directory / "a.npz")


def test_every_planned_request_is_sent_once_and_answered(server: ProtocolServer, tmp_path: Path) -> None:
    before = len(server.scorer.requests)
    summary, sample = generate(server, tmp_path)
    assert summary["requests"] == summary["answered"] == len(sample.at) == len(server.scorer.requests) - before == 150
    assert summary["statuses"] == {"OK": 150}
    assert len(read_messages(tmp_path / "replies.bin")) == 150
    assert np.all(sample.sent >= sample.at - 2e-3)
    assert np.all(sample.latency_s >= sample.sent - sample.at)
    assert summary["latency_ms"]["p50"] == pytest.approx(float(np.median(sample.latency_s)) * 1e3)


def test_a_slow_server_does_not_slow_the_load_down(server: ProtocolServer, tmp_path: Path) -> None:
    server.scorer.entered.clear()
    hold = server.scorer.hold = asyncio.Event()

    def release() -> None:
        assert server.scorer.entered.wait(30)
        time.sleep(1.0)
        server.loop.call_soon_threadsafe(hold.set)

    releasing = threading.Thread(target=release)
    releasing.start()
    _, sample = generate(server, tmp_path)
    releasing.join()
    server.scorer.hold = None
    held = sample.at < sample.at[0] + 0.8
    assert held.sum() > 20, "requests keep coming while none is answered"
    ends = sample.at[held] + sample.latency_s[held]
    assert ends.min() >= 0.95, "every held request waited, by its scheduled time, until the release"
    assert np.ptp(sample.latency_s[held]) > 0.6, "the earlier it was scheduled, the longer it waited"


def test_impatient_clients_are_counted_apart(server: ProtocolServer, tmp_path: Path) -> None:
    server.scorer.hold = asyncio.Event()
    summary, sample = generate(server, tmp_path, cancel_share=0.5, cancel_within_ms=50, deadline_ms=200)
    server.run(_set(server.scorer.hold))
    server.scorer.hold = None
    assert set(summary["statuses"]) == {CANCELLED, "DEADLINE_EXCEEDED"}
    assert summary["statuses"][CANCELLED] == pytest.approx(75, abs=30)
    assert not sample.answered.any()
    assert summary["goodput_per_s"] == 0


async def _set(event: asyncio.Event) -> None:
    event.set()


def test_messages_survive_a_round_trip(tmp_path: Path) -> None:
    messages = [b"", b"a" * 70_000, b"\x00\x01"]
    write_messages(tmp_path / "m.bin", messages)
    assert list(read_messages(tmp_path / "m.bin")) == messages


def test_a_truncated_file_of_messages_is_told(tmp_path: Path) -> None:
    write_messages(tmp_path / "m.bin", [b"abc"])
    (tmp_path / "m.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"m.bin: .*message 0"):
        read_messages(tmp_path / "m.bin")
