"""Runs kunlun commands as child processes, as a user would: a stage with its JSON figures, or a server until told to stop.

And what other child processes need: free ports, waiting, an end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
PORTS = range(10_000, 32_768)
"""Below those that the kernel hands out: such a one may be the local end of a connection before its server listens."""


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


class ServerProcess:
    """``kunlun serve`` as a platform runs it: started, stopped, killed, started again; one at a time in a `workdir`."""

    def __init__(self, arguments: Sequence[str], workdir: Path) -> None:
        self._arguments, self._ready, self._log = tuple(arguments), workdir / "server.ready", workdir / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        workdir.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it; it is not ready yet."""
        self._ready.unlink(missing_ok=True)
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kunlun.cli", "serve", *self._arguments, "--ready-file", str(self._ready)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def wait_until_ready(self, timeout_s: float = 120) -> RunningServer:
        """Raises `StageFailed` when it ends or takes longer."""
        process, deadline = self.process, time.monotonic() + timeout_s
        while not self._ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise StageFailed("kunlun serve did not become ready:\n" + self._log.read_text()[-2000:])
            time.sleep(0.02)
        facts = json.loads(self._ready.read_text())
        return RunningServer(facts["address"], facts["metrics"], facts["store"], facts["pid"])

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, which must have been started."""
        assert self._process is not None
        return self._process

    def stop(self, timeout_s: float = 30, *, may_be_dead: bool = False) -> None:
        """SIGTERM, and wait until it has ended; raises `StageFailed` unless with status 0 (or dead before)."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=timeout_s) != 0 and not may_be_dead:
            raise StageFailed(f"kunlun serve ended with status {self.process.returncode}:\n" + self._log.read_text()[-2000:])

    def close(self) -> None:
        """End it at once, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # ends a stopped process, too
            self._process.wait()


@contextmanager
def serving(arguments: Sequence[str], workdir: Path, timeout_s: float = 120) -> Iterator[RunningServer]:
    """Start ``kunlun serve``, wait until it is ready, and stop it gracefully at the end; one at a time in a `workdir`."""
    process = ServerProcess(arguments, workdir)
    try:
        process.start()
        server = process.wait_until_ready(timeout_s)
        yield server
        process.stop(may_be_dead=server.is_killed)
    finally:
        process.close()


def free_ports(count: int, hosts: Sequence[str] = (LOOPBACK,), attempts: int = 1000) -> list[int]:
    """Distinct ports of `PORTS` that nobody listens on at any of `hosts`; raises `OSError`.

    Draw all that are needed at once: a port drawn later could be one that is drawn here and not listened on yet.
    """
    drawn = random.SystemRandom().sample(PORTS, attempts)  # tests may have seeded the other generator
    found = list(islice((port for port in drawn if _is_free(port, hosts)), count))
    if len(found) < count:
        raise OSError(f"expected {count} ports that are free on {', '.join(hosts)}, found {len(found)} in {attempts} attempts")
    return found


def _is_free(port: int, hosts: Sequence[str]) -> bool:
    try:
        for host in hosts:
            socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


def end(process: subprocess.Popen[Any], timeout_s: float = 10) -> None:
    """SIGTERM, and SIGKILL for what has not ended after that time."""
    process.terminate()
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool], else_say: str, limit_s: float) -> None:
    """Wait for something that must come; raises `TimeoutError`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{else_say} within {limit_s:g} s")
        time.sleep(0.1)
