"""A replica is added under load: how long until it gets its share of the calls."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from loadtest.balancer.figures import answered_by, common, wait_until_flowing
from loadtest.balancer.haproxy import HAProxyProcess
from loadtest.balancer.replicas import LIMIT_S, Replica
from loadtest.balancer.traffic import Balancer, Source

CHANNELS = 12
"""Connections of the callers."""

WINDOW_S, WINDOW_CALLS, STEP_S = 2.0, 30, 0.2
"""Calls are counted over a window of at least that time and as many of them, every step."""

ENOUGH = 0.8
"""Part of its fair share, over a window, from which a replica is taken to have it: counts of a few dozen calls scatter."""

Counts = tuple[float, list[float]]
"""A time, and what each replica has answered until then."""


def new_replica(balancer: Balancer, replicas: Sequence[Replica], source: Source, calls: int, rate: float) -> dict[str, Any]:
    """Figures of one run through a balancer of calls; the last of `replicas` is the new one, not started yet."""
    return _joins(balancer.address, replicas, source, calls, rate)


def new_replica_by_connection(
    balancer: HAProxyProcess, replicas: Sequence[Replica], source: Source, calls: int, rate: float
) -> dict[str, Any]:
    """The same through a balancer of connections: it gets calls as old connections end, so their age must be bounded."""
    return _joins(balancer.by_connection, replicas, source, calls, rate)


def share_of_last(counts: deque[Counts]) -> float | None:
    """Share of the last replica over the latest window; None: it is not full yet. Drops counts from before that window."""
    while len(counts) > 1 and _is_full(counts[1], counts[-1]):
        counts.popleft()
    if not _is_full(counts[0], counts[-1]):
        return None
    rise = _rise(counts[0], counts[-1])
    return rise[-1] / sum(rise)


def _is_full(first: Counts, last: Counts) -> bool:
    return last[0] - first[0] >= WINDOW_S and sum(_rise(first, last)) >= WINDOW_CALLS


def _rise(first: Counts, last: Counts) -> list[float]:
    return [late - early for early, late in zip(first[1], last[1], strict=True)]


def _joins(address: str, replicas: Sequence[Replica], source: Source, calls: int, rate: float) -> dict[str, Any]:
    share_s: float | None = None
    old, new = replicas[:-1], replicas[-1]
    before = answered_by(old)
    with source.to(address, calls, rate, channels=CHANNELS) as traffic:
        wait_until_flowing(old, before)
        new.start()
        new.wait_until_ready()
        ready = time.monotonic()
        counts: deque[Counts] = deque()
        while traffic.is_running and time.monotonic() - ready < LIMIT_S:
            counts.append((time.monotonic(), answered_by(replicas)))
            share = share_of_last(counts)
            if share is not None and share >= ENOUGH / len(replicas):
                share_s = round(time.monotonic() - ready, 1)
                break
            time.sleep(STEP_S)
        traffic.stop()
        sample = traffic.sample
    return common(sample) | {"share_after_s": share_s, "connections": CHANNELS}
