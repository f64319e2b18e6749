"""One replica becomes slow under load but answers: its process is stopped for most of the time.

Its health checks, which wait for longer than that, pass; most calls to it wait for more than half a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from loadtest.balancer.figures import answered_by, common, wait_until_flowing, wait_until_taken_in, waits
from loadtest.balancer.replicas import Replica
from loadtest.balancer.traffic import BY_LOAD, Balancer, Source

STOPPED_S, RUNNING_S = 1.5, 0.1
"""Health checks behind Envoy wait for 2 s; with less than a second of stopping half of the calls to it would be quick."""

THROTTLED_S = 30.0
"""Longer than a replica is put aside at first: it comes back meanwhile, and is put aside again."""

POLL_S = 0.1


@contextmanager
def throttled(replica: Replica, stopped_s: float = STOPPED_S, running_s: float = RUNNING_S) -> Iterator[None]:
    """Its process is stopped and continued in turn while the block runs."""
    over = threading.Event()

    def cycle() -> None:
        while not over.is_set():
            replica.freeze()
            over.wait(stopped_s)
            replica.thaw()
            over.wait(running_s)

    with ThreadPoolExecutor(1) as pool:
        cycling = pool.submit(cycle)
        try:
            yield
        finally:
            over.set()
            cycling.result()


def throttled_replica(
    balancer: Balancer,
    replicas: Sequence[Replica],
    source: Source,
    calls: int,
    rate: float,
    *,
    throttled_s: float = THROTTLED_S,
) -> dict[str, Any]:
    """Figures of one run: what calls waited, how often the replica was put aside for its calls, and when it first got none."""
    victim, repeated, ejected = replicas[-1], balancer.repeated(), balancer.ejected()
    before = answered_by(replicas)
    ejected_after_s: float | None = None
    with source.to(balancer.address, calls, rate) as traffic:
        wait_until_flowing(replicas, before)
        with throttled(victim):
            began = time.monotonic()
            while traffic.is_running and time.monotonic() - began < throttled_s:
                if ejected_after_s is None and victim.address not in balancer.healthy([BY_LOAD]):
                    ejected_after_s = round(time.monotonic() - began, 1)
                time.sleep(POLL_S)
        wait_until_taken_in(balancer, replicas)
        traffic.stop()
        sample = traffic.sample
    return common(sample) | {
        "ejected_after_s": ejected_after_s,
        "ejections": balancer.ejected() - ejected,
        **waits(sample),
        "repeated": balancer.repeated() - repeated,
    }
