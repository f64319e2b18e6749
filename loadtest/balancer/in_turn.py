"""Every replica in turn is taken down and started again, for as long as calls come: told to stop, or killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from loadtest.balancer.figures import answered_by, common, wait_until_flowing, wait_until_taken_in
from loadtest.balancer.replicas import Replica
from loadtest.balancer.traffic import Balancer, Source
from model.cli.console import note

SHUTDOWN_DELAY_S = 5.0
"""Longer than the balancers' health checks need to notice."""

DOWN_S = 3.0
"""How long a killed replica is missing."""


def rolling_restart(
    balancer: Balancer, replicas: Sequence[Replica], source: Source, calls: int, rate: float, *, times: int = -1
) -> dict[str, Any]:
    """Replicas are told to stop, and drain. `times`: restarts at most."""
    return _in_turn(balancer, replicas, source, calls, rate, Replica.stop, times)


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
    """Replicas crash, and are missing for `down_s`. `times`: crashes at most."""

    def crash(replica: Replica) -> None:
        replica.kill()
        time.sleep(down_s)

    return _in_turn(balancer, replicas, source, calls, rate, crash, times)


def _in_turn(
    balancer: Balancer,
    replicas: Sequence[Replica],
    source: Source,
    calls: int,
    rate: float,
    take_down: Callable[[Replica], None],
    times: int,
) -> dict[str, Any]:
    """Figures of one run: `repeated` calls met a replica that was down and went to another; `failed` ones were lost.

    `restarts` are those that calls have seen from start to end.
    """
    restarts, repeated = 0, balancer.repeated()
    before = answered_by(replicas)
    with source.to(balancer.address, calls, rate) as traffic:
        wait_until_flowing(replicas, before)
        while traffic.is_running and restarts != times:
            replica = replicas[restarts % len(replicas)]
            take_down(replica)
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
