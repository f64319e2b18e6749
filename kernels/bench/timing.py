"""Seconds of a call on a device: median and spread of blocks of calls.

On a GPU a block is timed by CUDA events around several calls in a row, so that the host runs ahead and the figure is the
device's unless the host cannot keep up. `calls` rotate over several input sets, so that the L2 cache cannot hold them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

BLOCK_S, BLOCKS, WARM_UP = 4e-3, 15, 2


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 10th and 90th percentile over `blocks` blocks of `calls` calls."""

    median_s: float
    low_s: float
    high_s: float
    blocks: int
    calls: int


def measure(calls: Sequence[Callable[[], Any]], device: str, blocks: int = BLOCKS) -> Timing:
    """Time `calls`, which do the same work on different inputs, in turn."""
    for n in range(max(WARM_UP, len(calls))):
        calls[n % len(calls)]()
    per_call = _block(calls, 0, 1, device)
    count = max(1, min(100, round(BLOCK_S / max(per_call, 1e-6)))) if device == "cuda" else 1
    blocks = blocks if device == "cuda" else 2
    seconds, at = [], 0
    for _ in range(blocks):
        seconds.append(_block(calls, at, count, device))
        at += count
    low, median, high = np.percentile(seconds, (10, 50, 90))
    return Timing(float(median), float(low), float(high), blocks, count)


def _block(calls: Sequence[Callable[[], Any]], first: int, count: int, device: str) -> float:
    """Seconds per call of `count` calls."""
    if device == "cuda":
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        began.record()
        for n in range(first, first + count):
            calls[n % len(calls)]()
        ended.record()
        torch.cuda.synchronize()
        return float(began.elapsed_time(ended)) / 1e3 / count
    started = time.perf_counter()
    for n in range(first, first + count):
        calls[n % len(calls)]()
    return (time.perf_counter() - started) / count
