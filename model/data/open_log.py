"""Opens a canonical log in memory or in mapped files, whichever fits: both are the same `RequestLog` and train alike."""

from __future__ import annotations

import resource
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from model.data.mapped_log import is_larger_than, map_request_log
from model.data.request_log import RequestLog, load_request_log

SHARE_OF_MEMORY = 0.5
"""Of the memory that is available, at most so much goes to a log held in memory."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
STATUS = Path("/proc/self/status")
_LIMITS = {"VmSize": resource.RLIMIT_AS, "VmData": resource.RLIMIT_DATA}
"""What of this process each limit counts."""


class Storage(StrEnum):
    """Where the arrays of a log are; `auto`: mapped as soon as they would not fit into half of the available memory."""

    AUTO = "auto"
    MEMORY = "memory"
    MAPPED = "mapped"


def open_request_log(
    directory: Path,
    storage: Storage = Storage.AUTO,
    cache: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RequestLog:
    """The log of a directory; `note` is told which storage was chosen and why. Raises as `load_request_log` does."""
    if storage is Storage.AUTO:
        available = available_bytes()
        if not is_larger_than(directory, int(available * SHARE_OF_MEMORY)):
            return load_request_log(directory)
        note(f"{directory}: larger than half of the {available / 1e9:.1f} GB of available memory: read from mapped files")
    elif storage is Storage.MEMORY:
        return load_request_log(directory)
    return map_request_log(directory, cache, progress)


def available_bytes() -> int:
    """Memory that this process may still take: the least of what the system, its control group and its limits leave."""
    taken = proc_bytes(STATUS)
    limits = {name: resource.getrlimit(kind)[0] for name, kind in _LIMITS.items()}
    found = [max(0, limit - taken.get(name, 0)) for name, limit in limits.items() if limit != resource.RLIM_INFINITY]
    if "MemAvailable" in (system := proc_bytes(_MEMINFO)):
        found.append(system["MemAvailable"])
    most, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if most.is_file() and used.is_file() and (text := most.read_text().strip()).isdigit():
        found.append(max(0, int(text) - int(used.read_text())))
    return min(found, default=1 << 33)


def proc_bytes(file: Path) -> dict[str, int]:
    """Figures in kB of a file of ``/proc`` in bytes, by name; empty where the system has none."""
    if not file.is_file():
        return {}
    lines = (line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in lines}
