"""What a request costs the event loop, measured: the other queue of a ranker.

Everything outside the engine (parsing, reading features, building tensors, replying) runs on one
thread. When that thread is what limits, its queue does not show in the scheduler's: it shows as many
requests in flight. Their number times the loop time of one request is how long they need.

Loop time is CPU time plus, where the kernel tells it, the time the thread was ready to run and had
no CPU. Sampled every `SAMPLE_S`; called on the loop's thread only.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

SAMPLE_S = 0.1
WEIGHT = 0.3
LEAST_REQUESTS = 5


class HostTime:
    """Loop seconds per request, smoothed; 0 while nothing is known."""

    def __init__(self) -> None:
        self.per_request_s = 0.0
        self._answered = 0
        self._next, self._used = 0.0, 0.0
        self._schedstat: Path | None = None

    def start(self) -> None:
        """Count from now on, for the calling thread."""
        self._schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        if not self._schedstat.exists():
            self._schedstat = None
        self._used, self._next, self._answered = self._used_s(), time.monotonic() + SAMPLE_S, 0

    def answered(self, now: float) -> None:
        """One more request has left."""
        self._answered += 1
        if now < self._next or self._answered < LEAST_REQUESTS:
            return
        used = self._used_s()
        sample = (used - self._used) / self._answered
        self.per_request_s += (WEIGHT if self.per_request_s else 1.0) * (sample - self.per_request_s)
        self._used, self._next, self._answered = used, now + SAMPLE_S, 0

    def backlog_s(self, in_flight: int) -> float:
        """Loop seconds that the requests in flight may still need."""
        return in_flight * self.per_request_s

    def _used_s(self) -> float:
        """CPU seconds of the thread, and its seconds in the run queue."""
        if self._schedstat is None:
            return time.thread_time()
        running, waiting, _ = self._schedstat.read_bytes().split()
        return (int(running) + int(waiting)) / 1e9
