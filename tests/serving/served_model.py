"""`kunlun serve` as a child process with everything on free ports, for server tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class ServeProcess:
    """A started server, perhaps not ready yet."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._ready, self._log = directory / "ready.json", directory / "server.log"
        self._ready.unlink(missing_ok=True)
        config = directory / "server.yaml"
        config.write_text("core: {max_batch_candidates: 64, max_batch_requests: 4, max_batch_users: 2}\n")  # few shapes to warm
        always = ["--config", str(config), "--port", "0", "--metrics-port", "0", "--precision", "f32"]
        always += ["--front-end", os.environ.get("KUNLUN_TEST_FRONT_END", "grpcio")]
        always += ["--ready-file", str(self._ready)]
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kunlun.cli", "serve", *always, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self, timeout_s: float = 60) -> dict[str, Any]:
        """The facts of the ready file."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads(self._ready.read_text())
        return facts

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)


@contextmanager
def serve(directory: Path, *arguments: str) -> Iterator[ServeProcess]:
    """Start a server; it is gone afterwards whatever happens."""
    server = ServeProcess(directory, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
