"""Shape: searches the highest rate at which at most 1 % of Ranks fail or take longer than `--slo-p99-ms`.

`-f loadtest/locustfile.py,loadtest/swarm/capacity.py`. The search and its stopping rule are those of the open-loop harness
(`loadtest.openloop.capacity`); only the runs are Locust's.
"""

from __future__ import annotations

import time

import gevent
import numpy as np
from gevent import Greenlet
from numpy.typing import NDArray

from loadtest.openloop.capacity import Capacity, find_capacity
from loadtest.swarm.shape import Shape
from loadtest.swarm.shapes import Level, check_sent, in_whole_users, misses_between, whole_users
from model.cli.console import note

SETTLE_S = 3.0
"""After a change of rate, before calls count."""

REPORT_S = 4.0
"""Workers report every three seconds."""


class CapacitySearch(Shape):
    """One run at a time; what it found is noted, and stands in the closing JSON object."""

    def __init__(self) -> None:
        super().__init__()
        self._users = 1
        self._search: Greenlet[..., Capacity] | None = None

    def level(self) -> Level | None:
        """Users of the run under way; None when the search has ended."""
        if self._search is None:
            if self.worker.options.slo_p99_ms <= 0:
                raise ValueError("slo-p99-ms: expected the bound on latency for the capacity search, found none")
            self._search = gevent.spawn(self._find)
        if self._search.ready():
            self.worker.capacity = self._search.get()
            return None
        return self._users, float(self._users)

    def _find(self) -> Capacity:
        return in_whole_users(find_capacity(self._misses_at, self.worker.options.first_guess, note=note), self._rate_per_user)

    @property
    def _rate_per_user(self) -> float:
        return float(self.worker.options.rate_per_user)

    def _misses_at(self, rate: float, run: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        options, self._users = self.worker.options, whole_users(rate, self._rate_per_user)
        gevent.sleep(SETTLE_S)
        first = int(time.time()) + 1
        last = first + max(2, round(options.probe_seconds))
        gevent.sleep(last - time.time() + options.call_timeout_ms / 1e3 + REPORT_S)
        at, missed = misses_between(self.worker.measures.seconds, first, last)
        check_sent(len(at), self._users * self._rate_per_user * (last - first))
        return at, missed
