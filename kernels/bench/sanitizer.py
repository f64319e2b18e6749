"""Races and memory errors: NVIDIA's compute-sanitizer over a small run of every operator, where the tool is installed.

`memcheck` runs without torch's caching allocator, so that every tensor is an allocation of its own and one element too far
is seen. The tools run side by side: they are slow on the host, not on the GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("memcheck", "racecheck")
FOUND = 86
"""Exit status of the sanitizer when it found something."""


@dataclass(frozen=True)
class Sanitized:
    """One tool's verdict. `ok` None: could not be run, `detail` says why."""

    tool: str
    ok: bool | None
    detail: str
    seconds: float = 0.0


def sanitize(device: str, limit_s: float) -> list[Sanitized]:
    """Run all tools for `limit_s` seconds at most."""
    program = shutil.which("compute-sanitizer")
    if device != "cuda" or program is None:
        reason = "compute-sanitizer is not on the PATH" if device == "cuda" else "no GPU"
        return [Sanitized(tool, None, reason) for tool in TOOLS]
    started = time.monotonic()
    running = {tool: _start(program, tool) for tool in TOOLS}
    return [_wait(tool, process, started, limit_s) for tool, process in running.items()]


def _start(program: str, tool: str) -> subprocess.Popen[str]:
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-m", "kernels.bench.parity", "--small"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, env=environment, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def _wait(tool: str, process: subprocess.Popen[str], started: float, limit_s: float) -> Sanitized:
    try:
        output, _ = process.communicate(timeout=max(1.0, started + limit_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return Sanitized(tool, None, f"not finished within {limit_s:.0f} s", time.monotonic() - started)
    summary = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
    wrong = [line for line in output.splitlines() if line.startswith("BAD")]
    detail = summary[-1] if summary else (output.strip().splitlines() or ["no output"])[-1]
    if wrong:
        detail += f"; {len(wrong)} results wrong under the tool: {wrong[0]}"
    return Sanitized(tool, process.returncode == 0, detail, time.monotonic() - started)
