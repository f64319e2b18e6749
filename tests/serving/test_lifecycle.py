"""Signals: a server stops while it starts, too, and the second signal ends it at once, in a container as well.

All in processes of their own. Under pytest, on a CPU with AMX, any signal that Python handles is fatal once an engine has run:
handlers run on the alternate stack of pytest's faulthandler, too small for the registers that the kernel then saves there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STOPS_FOR_EVER = """
import asyncio, uvloop
from serving.lifecycle import stopped_by_signals

async def main():
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.sleep(600)

uvloop.run(main())
"""
WORKS_FOR_EVER = """
import tempfile, time
from kunlun.cli import ended_by_sigterm

with ended_by_sigterm(), tempfile.TemporaryDirectory() as directory:
    print(directory, flush=True)
    time.sleep(600)
"""
WARMS_UP_FOR_EVER = """
import asyncio, contextlib
from pathlib import Path
import serving.server
from serving.config import ServerConfig

@contextlib.asynccontextmanager
async def warms_up_for_ever(config):
    try:
        print("starting", flush=True)
        await asyncio.sleep(600)
        yield object()
    finally:
        print("closed", flush=True)

serving.server.running_server = warms_up_for_ever
asyncio.run(serving.server.serve(ServerConfig(repository=Path()), lambda addresses: print("ready", flush=True)))
"""
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")


def can_be_process_one() -> bool:
    """Whether this user may make a namespace of processes, as a container engine does."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False, timeout=60).returncode == 0


class Script:
    """A running script; `process` is what has its exit status."""

    def __init__(self, process: subprocess.Popen[str], is_process_one: bool) -> None:
        self.process, self._is_process_one = process, is_process_one

    def line(self) -> str:
        """The next line that it writes."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        pid = self.process.pid
        if self._is_process_one:
            (pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        os.kill(pid, number)


@contextlib.contextmanager
def running(script: str, *, is_process_one: bool) -> Iterator[Script]:
    prefix = NAMESPACE if is_process_one else ()
    process = subprocess.Popen([*prefix, sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        yield Script(process, is_process_one)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=[False, True], ids=["beside others", "as process 1"])
def is_process_one(request: pytest.FixtureRequest) -> bool:
    if request.param and not can_be_process_one():
        pytest.skip("not verified here: a namespace of processes needs root")
    return bool(request.param)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_server_at_once(is_process_one: bool, number: signal.Signals) -> None:
    with running(STOPS_FOR_EVER, is_process_one=is_process_one) as script:
        assert script.line() == "ready"
        script.send(signal.SIGTERM)
        assert script.line() == "stopping"
        script.send(number)
        assert script.process.wait(timeout=60) == 128 + number


def test_sigterm_ends_a_command_and_leaves_nothing_behind(is_process_one: bool) -> None:
    with running(WORKS_FOR_EVER, is_process_one=is_process_one) as script:
        directory = Path(script.line())
        assert directory.is_dir()
        script.send(signal.SIGTERM)
        assert script.process.wait(timeout=60) == 128 + signal.SIGTERM
        assert not directory.exists()


def test_a_server_stops_while_it_starts() -> None:
    with running(WARMS_UP_FOR_EVER, is_process_one=False) as script:
        assert script.line() == "starting"
        script.send(signal.SIGTERM)
        assert script.line() == "closed"
        assert script.process.wait(timeout=60) == 0
