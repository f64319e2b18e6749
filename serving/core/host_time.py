"""What a request costs the event loop, measured: the other queue of a ranker.

Everything outside the engine (parsing, reading features, building tensors, replying) runs on one
thread. When that thread is what limits, its queue does not show in the scheduler's: it shows as many
requests in flight. Their number times the loop time of one request is how long they need. What has
arrived and not been looked at yet (calls that will be refused, too) shows as *lag*: how late the loop is
for a timer. Every step of a request waits for it anew.

Loop time is CPU time plus, where the kernel tells it, the time the thread was ready to run and had
no CPU. Sampled every `SAMPLE_S`, lag every `TICK_S`; called on the loop's thread only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

SAMPLE_S = 0.1
WEIGHT = 0.3
LEAST_REQUESTS = 5
TICK_S = 0.01
STEPS = 4
"""Times that a request waits for the loop: admitted, store read, encoded or scored, answered."""


class HostTime:
    """Loop seconds per request, smoothed, and the loop's lag; 0 while nothing is known."""

    def __init__(self) -> None:
        self.per_request_s = 0.0
        self.lag_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._answered = 0
        self._next, self._used = 0.0, 0.0
        self._schedstat: Path | None = None

    def start(self) -> None:
        """Count from now on, for the calling thread."""
        self._schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        if not self._schedstat.exists():
            self._schedstat = None
        self._used, self._next, self._answered = self._used_s(), time.monotonic() + SAMPLE_S, 0
        self._tick(asyncio.get_running_loop(), None)

    def stop(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def answered(self, now: float) -> None:
        """One more request has left."""
        self._answered += 1
        if now < self._next or self._answered < LEAST_REQUESTS:
            return
        used = self._used_s()
        sample = (used - self._used) / self._answered
        self.per_request_s += (WEIGHT if self.per_request_s else 1.0) * (sample - self.per_request_s)
        self._used, self._next, self._answered = used, now + SAMPLE_S, 0

    def wait_s(self, in_flight: int) -> float:
        """What a request that is admitted now has to wait for the loop."""
        return max(in_flight * self.per_request_s, STEPS * self.lag_s)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float | None) -> None:
        """Note how late this call is, and come again."""
        now = time.monotonic()
        late = 0.0 if due is None else max(0.0, now - due)
        self.lag_s += WEIGHT * (late - self.lag_s)  # one slow callback is no queue
        self._timer = loop.call_later(TICK_S, self._tick, loop, now + TICK_S)

    def _used_s(self) -> float:
        """CPU seconds of the thread, and its seconds in the run queue."""
        if self._schedstat is None:
            return time.thread_time()
        running, waiting, _ = self._schedstat.read_bytes().split()
        return (int(running) + int(waiting)) / 1e9
