"""One replica stops answering under load without closing a connection, and goes on later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from loadtest.balancer.figures import answered_by, common, wait_until_flowing, wait_until_taken_in, waits
from loadtest.balancer.replicas import LIMIT_S, Replica
from loadtest.balancer.traffic import BY_LOAD, Balancer, Source
from loadtest.processes import wait_until

OUT_S = 5.0
"""How long it stays out after the balancer has noticed."""


def slow_replica(
    balancer: Balancer, replicas: Sequence[Replica], source: Source, calls: int, rate: float, *, out_s: float = OUT_S
) -> dict[str, Any]:
    """Figures of one run: how long until the replica got no more calls, what they waited, and how long until it was back."""
    victim, repeated = replicas[-1], balancer.repeated()
    before = answered_by(replicas)
    with source.to(balancer.address, calls, rate) as traffic:
        wait_until_flowing(replicas, before)
        frozen = time.monotonic()
        victim.freeze()
        try:
            wait_until(
                lambda: victim.address not in balancer.healthy([BY_LOAD]),
                f"{balancer.name} did not eject the silent replica",
                LIMIT_S,
            )
            ejected_s = time.monotonic() - frozen
            time.sleep(out_s)
        finally:
            victim.thaw()
        thawed = time.monotonic()
        wait_until_taken_in(balancer, replicas)
        back_s = time.monotonic() - thawed
        traffic.stop()
        sample = traffic.sample
    return common(sample) | {
        "ejected_after_s": round(ejected_s, 1),
        "back_after_s": round(back_s, 1),
        **waits(sample),
        "repeated": balancer.repeated() - repeated,
    }
