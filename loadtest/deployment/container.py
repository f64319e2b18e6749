"""A process in a root of its own, as a container engine runs it: chroot, namespaces, a user, a read-only root. Needs root.

The process is number 1 of its namespace, sees no network but its loopback, and may write to its volumes and /tmp alone.
No image format, no control groups: it shows that an image's contents suffice, not that they are isolated.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.deployment.dockerfile import DEFAULT_PATH


def run_as_root(root: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """A step of a build: in `root`, with the machine's network. Raises `CalledProcessError`."""
    setup = f"mount -t proc proc {root}/proc && mount --bind /dev {root}/dev && exec"
    arguments = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", f'{setup} "$@"', "sh"]
    arguments += ["env", "-i", f"PATH={DEFAULT_PATH}", *_assignments(environment), "chroot", str(root), *command]
    subprocess.run(arguments, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Container:
    """A started process; `volumes`: directories of this machine by where they are mounted."""

    def __init__(
        self,
        root: Path,
        user: str,
        environment: Mapping[str, str],
        volumes: Mapping[str, Path],
        command: Sequence[str],
        log: Path,
    ) -> None:
        self._root, self._log = root.resolve(), log
        mounts = [f"mount --bind {self._root} {self._root}", f"mount -o remount,bind,ro {self._root}"]
        mounts += [f"mount -t tmpfs -o mode=1777 tmpfs {self._root}/tmp", f"mount -t proc proc {self._root}/proc"]
        mounts += [f"mount -t sysfs -o ro sysfs {self._root}/sys", f"mount --bind /dev {self._root}/dev"]
        for inside, outside in volumes.items():
            mounts += [f"mkdir -p {self._root}{inside}"] if inside.startswith("/tmp/") else []
            mounts += [f"mount --bind {outside.resolve()} {self._root}{inside}"]
        setup = " && ".join([*mounts, "ip link set lo up", 'exec "$@"'])
        self._enter = ["chroot", f"--userspec={user}", str(self._root), "env", "-i", *_assignments(environment)]
        apart = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*apart, "sh", "-c", setup, "sh", *self._enter, *command], stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> str:
        """What the process has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def execute(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Another process beside the first, as the same user."""
        namespaces = ["nsenter", "--target", str(self._first()), "--mount", "--pid", "--net", "--ipc", "--uts"]
        arguments = [*namespaces, *self._enter, *command]
        return subprocess.run(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout_s
        )

    def wait(self, timeout_s: float) -> int:
        """Its exit status, once it has ended by itself."""
        return self._process.wait(timeout=timeout_s)

    def stop(self, timeout_s: float = 180) -> int:
        """SIGTERM to process 1; its exit status. Raises `TimeoutExpired`."""
        os.kill(self._first(), signal.SIGTERM)
        return self._process.wait(timeout=timeout_s)

    def kill(self) -> None:
        """Whatever is left: with process 1 its namespace ends."""
        if self._process.poll() is None:
            for number in self._children():
                os.kill(number, signal.SIGKILL)
            self._process.kill()
        self._process.wait()

    def _first(self, timeout_s: float = 10) -> int:
        """Process 1, by its number on this machine."""
        deadline = time.monotonic() + timeout_s
        while not (found := self._children()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the container did not start:\n{self.log[-2000:]}")
            time.sleep(0.02)
        return found[0]

    def _children(self) -> list[int]:
        """What `unshare` has forked; it does not end with it, since changing the user clears that wish."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(number) for number in children.read_text().split()] if children.exists() else []


def _assignments(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]
