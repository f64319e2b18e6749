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


class Sanitizer:
    """All tools, started side by side; nothing where they cannot run."""

    def __init__(self, device: str) -> None:
        program = shutil.which("compute-sanitizer")
        self.reason = "no GPU" if device != "cuda" else "compute-sanitizer is not on the PATH"
        self.started = time.monotonic()
        can = device == "cuda" and program is not None
        self.running = {tool: _start(str(program), tool) for tool in TOOLS} if can else {}

    def wait(self, until: float) -> list[Sanitized]:
        """Verdicts; what has not finished by `until` on the monotonic clock is ended."""
        if not self.running:
            return [Sanitized(tool, None, self.reason) for tool in TOOLS]
        return [_wait(tool, process, self.started, until) for tool, process in self.running.items()]


def _start(program: str, tool: str) -> subprocess.Popen[str]:
    command = [
        program,
        "--tool",
        tool,
        "--error-exitcode",
        str(FOUND),
        sys.executable,
        "-m",
        "kernels.bench.parity",
        "--small",
        "--bf16",
    ]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, env=environment, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def _wait(tool: str, process: subprocess.Popen[str], started: float, until: float) -> Sanitized:
    try:
        output, _ = process.communicate(timeout=max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return Sanitized(tool, None, f"not finished after {time.monotonic() - started:.0f} s", time.monotonic() - started)
    summary = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
    wrong = [line for line in output.splitlines() if line.startswith("BAD")]
    detail = summary[-1] if summary else (output.strip().splitlines() or ["no output"])[-1]
    if process.returncode not in (0, FOUND):
        detail = f"the program under the tool failed with {process.returncode} and was not seen whole; {detail}"
    if wrong:
        detail += f"; {len(wrong)} results wrong under the tool: {wrong[0]}"
    return Sanitized(tool, process.returncode == 0, detail, time.monotonic() - started)
