"""Every replica in turn is told to stop, drains, and is started again, for as long as calls come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadtest.balancer.figures import answered_by, common, wait_until_flowing, wait_until_taken_in
from loadtest.balancer.replicas import Replica
from loadtest.balancer.traffic import Balancer, Source
from model.cli.console import note

SHUTDOWN_DELAY_S = 5.0
"""Longer than the balancers' health checks need to notice."""


def rolling_restart(
    balancer: Balancer, replicas: Sequence[Replica], source: Source, calls: int, rate: float, *, times: int = -1
) -> dict[str, Any]:
    """Figures of one run; every call is sent once, so what fails has failed for its caller. `times`: restarts at most."""
    restarts, repeated = 0, balancer.repeated()
    before = answered_by(replicas)
    with source.to(balancer.address, calls, rate) as traffic:
        wait_until_flowing(replicas, before)
        while traffic.is_running and restarts != times:
            replica = replicas[restarts % len(replicas)]
            replica.stop()
            replica.start()
            replica.wait_until_ready()
            wait_until_taken_in(balancer, replicas)
            if traffic.is_running:
                restarts += 1
                if restarts % 10 == 0:
                    note(f"{restarts} restarts")
        traffic.stop()
        sample = traffic.sample
    return common(sample) | {"restarts": restarts, "repeated": balancer.repeated() - repeated}
