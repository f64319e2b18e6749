"""When a Locust user calls, and for whom: drawn ahead in blocks, so that no reply is waited for (open loop).

Poisson processes add up: n Locust users of rate r are one of rate n · r, on any number of workers. So Locust's user count is
the load, and its ramps and shapes change the rate of arrivals, not the number of callers that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.openloop.workload import Workload, draw

BLOCK_S, FEW = 30.0, 20.0


@dataclass(frozen=True)
class Arrival:
    """One visit: `at` seconds after the user's start, by person number `user`, with these candidates (item numbers)."""

    at: float
    user: int
    items: NDArray[np.int64]


def block_seconds(rate: float) -> float:
    """Length of a block: long enough for some calls, since none has less than one."""
    return max(BLOCK_S, FEW / rate)


def source_seed(load_seed: int, worker: int, number: int) -> int:
    """Of the first block of a source, the `number`-th of a worker (from 1); block n has the seed n higher."""
    return int(np.random.SeedSequence((load_seed, worker, number)).generate_state(1)[0])


def arrivals(workload_at: Callable[[int], Workload]) -> Iterator[Arrival]:
    """Without end; `workload_at(block)` must differ from block to block in its seed alone."""
    start, block = 0.0, 0
    while True:
        workload = workload_at(block)
        plan = draw(workload)
        for number, (at, user) in enumerate(zip(plan.at.tolist(), plan.user.tolist(), strict=True)):
            yield Arrival(start + at, user, plan.items(number, workload.items))
        start, block = start + workload.seconds, block + 1
