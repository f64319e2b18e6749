"""Engine slots: closing one waits for what was submitted, and not for the shape that its helper is at."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from numpy.typing import NDArray

from serving.core import slots
from serving.core.slots import EngineSlot, is_busy_beside

LIMIT_S, INDEX = 60, 987


class OneSession:
    """An engine whose sessions do nothing."""

    name = precision = fault = ""
    entry: Any = None
    device_peak_flops = 0.0

    def open_session(self) -> OneSession:
        return self

    def prepare(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> None: ...

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {}

    def close(self) -> None: ...


def test_closing_finishes_what_was_submitted_and_leaves_the_helper_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "BESIDE_GRACE_S", 0.01)
    compiled, done, at_work = threading.Event(), list[tuple[int, Any]](), threading.Event()

    def compiles(_: object) -> None:
        at_work.set()
        assert compiled.wait(LIMIT_S)

    async def close() -> None:
        loop = asyncio.get_running_loop()
        slot: EngineSlot[int, int] = EngineSlot(
            OneSession(), loop, lambda _, task: 2 * task, lambda _, task, outcome: done.append((task, outcome)), INDEX
        )
        await slot.start(lambda _: None, beside=compiles)
        assert await asyncio.to_thread(at_work.wait, LIMIT_S)
        for task in range(3):
            slot.submit(task)
        await asyncio.wait_for(slot.close(), LIMIT_S)

    asyncio.run(close())
    assert done == [(0, 0), (1, 2), (2, 4)]
    assert is_busy_beside()
    [helper] = [t for t in threading.enumerate() if t.name == f"engine-slot-{INDEX}{slots.BESIDE}"]
    compiled.set()
    helper.join(LIMIT_S)
    assert not helper.is_alive()


def test_closing_waits_for_the_helper_of_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it takes the last task between the two steps of closing: then nobody waited for the helper."""
    monkeypatch.setattr(slots, "BESIDE_GRACE_S", LIMIT_S)
    prepared = threading.Event()

    async def close() -> None:
        loop = asyncio.get_running_loop()
        slot: EngineSlot[int, int] = EngineSlot(OneSession(), loop, lambda _, task: task, lambda *_: None, 0)
        await slot.start(lambda _: None, beside=lambda _: prepared.wait(LIMIT_S) and None)
        slot._tasks.put(None)
        await asyncio.to_thread(slot._thread.join, LIMIT_S)
        assert is_busy_beside()
        loop.call_later(0.05, prepared.set)
        await asyncio.wait_for(slot.close(), LIMIT_S)
        assert not is_busy_beside()

    asyncio.run(close())


def test_closing_a_slot_that_was_never_started_returns() -> None:
    async def close() -> None:
        slot: EngineSlot[int, int] = EngineSlot(OneSession(), asyncio.get_running_loop(), lambda _, t: t, lambda *_: None, 0)
        await asyncio.wait_for(slot.close(), LIMIT_S)

    asyncio.run(close())


def test_a_stopped_process_does_not_wait_for_a_shape_that_is_being_compiled() -> None:
    program = """
import argparse, atexit, sys, threading
from model.config import ConfigError
from serving.cli.process import run_until_stopped
from serving.core.slots import BESIDE

atexit.register(print, "libraries are unloaded")

async def work():
    threading.Thread(target=threading.Event().wait, name=f"engine-slot-0{BESIDE}", daemon=True).start()
    print("closed")
    if sys.argv[1:]:
        raise ConfigError(sys.argv[1])

raise SystemExit(run_until_stopped(argparse.Namespace(log_level="info"), work))
"""
    for mistake, status in ("", 0), ("port: taken", 2):
        command = [sys.executable, "-c", program, *filter(None, [mistake])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert (ended.returncode, ended.stdout) == (status, "closed\n"), ended.stderr
        assert ended.stderr == (f"kunlun: {mistake}\n" if mistake else "")
