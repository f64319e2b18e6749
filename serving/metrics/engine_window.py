"""A sliding window over engine work, from which MFU and padding waste are read at scrape time.

One writer (the event loop), any number of readers. Work is kept per second for `WINDOW_S` seconds.
Cost per batch: one addition; per scrape: 60.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60


@dataclass
class EngineWork:
    """Sums over a stretch of time."""

    useful_flops: float = 0.0
    executed_flops: float = 0.0
    busy_s: float = 0.0

    def add(self, useful_flops: float, executed_flops: float, busy_s: float) -> None:
        self.useful_flops += useful_flops
        self.executed_flops += executed_flops
        self.busy_s += busy_s


class EngineWindow:
    """Work of the last `WINDOW_S` seconds. `peak_flops` is per slot, in FLOP/s."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._seconds: deque[tuple[int, EngineWork]] = deque()
        self._lock = threading.Lock()
        self.peak_flops, self.slots = 0.0, 0

    def add(self, useful_flops: float, executed_flops: float, busy_s: float) -> None:
        """Count one batch, at its end."""
        second = int(self._clock())
        with self._lock:
            if not self._seconds or self._seconds[-1][0] != second:
                self._seconds.append((second, EngineWork()))
                self._forget(second)
            self._seconds[-1][1].add(useful_flops, executed_flops, busy_s)

    def total(self) -> EngineWork:
        """Sums over the window."""
        out = EngineWork()
        with self._lock:
            self._forget(int(self._clock()))
            for _, work in self._seconds:
                out.add(work.useful_flops, work.executed_flops, work.busy_s)
        return out

    def mfu_busy(self) -> float:
        """Useful FLOPs over what the engine could have done while it ran."""
        work = self.total()
        return _ratio(work.useful_flops, work.busy_s * self.peak_flops)

    def mfu_wall(self) -> float:
        """Useful FLOPs over what all slots could have done in the window."""
        span_s = min(float(WINDOW_S), self._clock() - self._began)
        return _ratio(self.total().useful_flops, span_s * self.peak_flops * self.slots)

    def padding_waste(self) -> float:
        """Share of executed FLOPs spent on padding."""
        work = self.total()
        return 1.0 - work.useful_flops / work.executed_flops if work.executed_flops else 0.0

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - WINDOW_S:
            self._seconds.popleft()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
