"""The memory check tells a process that was refused memory from one that failed of something else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loadtest.checks.training_memory import is_out_of_memory

FAILED = """Traceback (most recent call last):
  File "loadtest/checks/training_memory.py", line 80, in train_capped
    log = open_request_log(directory, Storage(storage), workdir / "mapped")
model.config.ConfigError: /tmp/kunlun-memory-x/log: not a canonical log
"""


@pytest.mark.parametrize(
    "last",
    [
        "MemoryError",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 4.00 GiB for an array",
        "pyarrow.lib.ArrowMemoryError: malloc of size 8589934592 failed",
        "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "  what():  std::bad_alloc",
    ],
)
def test_a_refused_allocation_is_one(last: str) -> None:
    assert is_out_of_memory(1, f"Traceback (most recent call last):\n  File x\n{last}\n")
    assert not is_out_of_memory(0, last)


def test_another_failure_of_a_check_about_memory_is_none() -> None:
    assert not is_out_of_memory(1, FAILED)
    assert not is_out_of_memory(-9, "")


def test_numpy_ends_with_such_a_line_under_a_limit() -> None:
    code = "import resource, numpy as np; resource.setrlimit(resource.RLIMIT_DATA, (1 << 32,) * 2); np.ones(1 << 31)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert is_out_of_memory(done.returncode, done.stderr), done.stderr
