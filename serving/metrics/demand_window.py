"""What Ranks ask for, as a share of what this process can do: the utilisation that autoscaling should follow.

Work is predicted when a request is read, for its full answer, so the figure goes on rising above 1 where CPU time and
busy time stop: when requests are degraded, refused or late. A request refused unread counts as an average one.
One writer (the event loop), any number of readers; cost per request: one addition.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serving.metrics.engine_window import WINDOW_S


@dataclass
class Demand:
    """Requests of one second, and predicted seconds of engine and event loop of those that were read."""

    second: int
    read: int = 0
    refused: int = 0
    engine_s: float = 0.0
    host_s: float = 0.0


class DemandWindow:
    """Demand of the last `WINDOW_S` seconds. `slots`: engine seconds that pass in one second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._seconds: deque[Demand] = deque()
        self._lock = threading.Lock()
        self.slots = 0

    def read(self, engine_s: float, host_s: float) -> None:
        """A request was read; its full answer needs so many seconds of engine slots and of the event loop."""
        with self._lock:
            now = self._now()
            now.read += 1
            now.engine_s += engine_s
            now.host_s += host_s

    def refused(self) -> None:
        """A request was refused before it was read."""
        with self._lock:
            self._now().refused += 1

    def utilisation(self) -> float:
        """The fuller of engine and event loop; 1: all they can do."""
        span_s = min(float(WINDOW_S), self._clock() - self._began)
        with self._lock:
            self._forget(int(self._clock()))
            read, refused = sum(d.read for d in self._seconds), sum(d.refused for d in self._seconds)
            engine_s, host_s = sum(d.engine_s for d in self._seconds), sum(d.host_s for d in self._seconds)
        if not (read and self.slots and span_s > 0):
            return 0.0
        return max(engine_s / self.slots, host_s) * (1 + refused / read) / span_s

    def _now(self) -> Demand:
        second = int(self._clock())
        if not self._seconds or self._seconds[-1].second != second:
            self._seconds.append(Demand(second))
            self._forget(second)
        return self._seconds[-1]

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0].second <= second - WINDOW_S:
            self._seconds.popleft()
