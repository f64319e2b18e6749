"""Runs kunlun commands as child processes, as a user would: a stage with its JSON figures, or a server until told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class StageFailed(RuntimeError):
    """A command ended with an error; the message holds its last lines."""


def run_stage(arguments: Sequence[str], timeout_s: float = 900) -> dict[str, Any]:
    """Run ``kunlun <arguments> --json`` and return its last line's figures; stderr is passed through."""
    done = subprocess.run(
        [sys.executable, "-m", "kunlun.cli", *arguments, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise StageFailed(f"kunlun {arguments[0]} ended with status {done.returncode}: {done.stdout.strip()[-500:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


@dataclass
class RunningServer:
    """A started server: where it listens, and its process id."""

    address: str
    metrics: str
    store: str
    pid: int
    is_killed: bool = False

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.is_killed = True
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def serving(arguments: Sequence[str], workdir: Path, timeout_s: float = 120) -> Iterator[RunningServer]:
    """Start ``kunlun serve``, wait until it is ready, and stop it gracefully at the end; one at a time in a `workdir`."""
    workdir.mkdir(parents=True, exist_ok=True)
    ready, log = workdir / "server.ready", workdir / "server.log"
    ready.unlink(missing_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kunlun.cli", "serve", *arguments, "--ready-file", str(ready)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        deadline = time.monotonic() + timeout_s
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise StageFailed("kunlun serve did not become ready:\n" + log.read_text()[-2000:])
            time.sleep(0.02)
        facts = json.loads(ready.read_text())
        server = RunningServer(facts["address"], facts["metrics"], facts["store"], facts["pid"])
        yield server
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=30) != 0 and not server.is_killed:
            raise StageFailed(f"kunlun serve ended with status {process.returncode}:\n" + log.read_text()[-2000:])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], else_say: str, limit_s: float) -> None:
    """Wait for something that must come; raises `TimeoutError`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{else_say} within {limit_s:g} s")
        time.sleep(0.1)
