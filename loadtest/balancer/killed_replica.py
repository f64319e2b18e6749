"""Replicas are killed under load, one at a time, and started again a while later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from loadtest.balancer.figures import answered_by, common, wait_until_flowing, wait_until_taken_in
from loadtest.balancer.replicas import Replica
from loadtest.balancer.traffic import Balancer, Source

DOWN_S = 3.0


def killed_replica(
    balancer: Balancer,
    replicas: Sequence[Replica],
    source: Source,
    calls: int,
    rate: float,
    *,
    down_s: float = DOWN_S,
    times: int = -1,
) -> dict[str, Any]:
    """Figures of one run: `repeated` calls met a dead replica and were sent to another; `failed` ones were lost."""
    kills, repeated = 0, balancer.repeated()
    before = answered_by(replicas)
    with source.to(balancer.address, calls, rate) as traffic:
        wait_until_flowing(replicas, before)
        while traffic.is_running and kills != times:
            replica = replicas[kills % len(replicas)]
            replica.kill()
            kills += 1
            time.sleep(down_s)
            replica.start()
            replica.wait_until_ready()
            wait_until_taken_in(balancer, replicas)
        traffic.stop()
        sample = traffic.sample
    return common(sample) | {"kills": kills, "repeated": balancer.repeated() - repeated}
