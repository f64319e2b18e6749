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

WINDOW_S, STEP_S = 2.0, 0.2
ENOUGH = 0.8
"""Part of its fair share, over a window, from which a replica is taken to have it: counts of a few dozen calls scatter."""


def new_replica(balancer: Balancer, replicas: Sequence[Replica], source: Source, calls: int, rate: float) -> dict[str, Any]:
    """Figures of one run through a balancer of calls; the last of `replicas` is the new one, not started yet."""
    return _joins(balancer.address, replicas, source, calls, rate)


def new_replica_by_connection(
    balancer: HAProxyProcess, replicas: Sequence[Replica], source: Source, calls: int, rate: float
) -> dict[str, Any]:
    """The same through a balancer of connections: it gets calls as old connections end, so their age must be bounded."""
    return _joins(balancer.by_connection, replicas, source, calls, rate)


def _joins(address: str, replicas: Sequence[Replica], source: Source, calls: int, rate: float) -> dict[str, Any]:
    share_s: float | None = None
    old, new = replicas[:-1], replicas[-1]
    before = answered_by(old)
    with source.to(address, calls, rate, channels=CHANNELS) as traffic:
        wait_until_flowing(old, before)
        new.start()
        new.wait_until_ready()
        ready = time.monotonic()
        counts: deque[tuple[float, list[float]]] = deque()
        while traffic.is_running and time.monotonic() - ready < LIMIT_S:
            counts.append((time.monotonic(), answered_by(replicas)))
            while counts[-1][0] - counts[0][0] > WINDOW_S:
                counts.popleft()
            rise = [late - early for early, late in zip(counts[0][1], counts[-1][1], strict=True)]
            share = rise[-1] / max(1.0, sum(rise))
            if share >= ENOUGH / len(replicas):
                share_s = round(time.monotonic() - ready, 1)
                break
            time.sleep(STEP_S)
        traffic.stop()
        sample = traffic.sample
    return common(sample) | {"share_after_s": share_s, "connections": CHANNELS}
