"""Locust as a child process, for checks and tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
RANK_ONLY = Path(__file__).with_name("rank_only.py")
SLACK_S = 180.0


def command(arguments: Sequence[str], *more: Path) -> list[str]:
    """The command line of a Locust with our file, and with `more` of them."""
    files = ",".join(str(file) for file in (LOCUSTFILE, *more))
    return [sys.executable, "-m", "locust", "-f", files, *arguments]


def headless(
    address: str, users: int, seconds: float, arguments: Sequence[str], *more: Path, cpu: int | None = None
) -> tuple[int, dict[str, Any]]:
    """One run without the web UI, pinned to `cpu`: exit status and closing JSON object; raises `RuntimeError` without one."""
    with tempfile.TemporaryDirectory(prefix="kunlun-locust-") as directory:
        file = Path(directory, "report.json")
        common = ["--headless", "--host", address, "-u", str(users), "-r", str(users), "-t", f"{seconds:g}s", "--only-summary"]
        line = command([*common, "--report", str(file), *arguments], *more)
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            if cpu is not None:
                os.sched_setaffinity(process.pid, {cpu})  # before it has threads, which have their starter's
            try:
                output, _ = process.communicate(timeout=seconds + SLACK_S)
            finally:
                process.kill()  # if it still runs
        if not file.exists():
            raise RuntimeError(f"locust ended with status {process.returncode} and no report:\n{output[-2000:]}")
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return process.returncode, report
