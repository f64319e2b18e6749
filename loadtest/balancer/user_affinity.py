"""Calls of one user to one replica, against calls to the least busy: hits of the user-state caches, and how load spreads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadtest.balancer.figures import answered_by, common, wait_until_taken_in
from loadtest.balancer.replicas import Replica, start_all
from loadtest.balancer.traffic import Balancer, Source
from loadtest.prometheus_text import total


def user_affinity(balancer: Balancer, replicas: Sequence[Replica], source: Source, calls: int, rate: float) -> dict[str, Any]:
    """The same calls both ways, each time with empty caches. `busiest`: calls of the busiest replica over the mean."""
    figures: dict[str, Any] = {}
    for name, address in (("by_load", balancer.address), ("by_user", balancer.by_user)):
        for replica in replicas:
            replica.kill()
        start_all(replicas)
        wait_until_taken_in(balancer, replicas)
        with source.to(address, calls, rate) as traffic:
            sample = traffic.sample
        lookups = [replica.metrics() for replica in replicas]
        hits, misses = (
            sum(total(page, "kunlun_user_state_lookups_total", outcome=outcome) for page in lookups)
            for outcome in ("hit", "miss")
        )
        answered = answered_by(replicas)
        figures[name] = common(sample) | {
            "hit_rate": round(hits / max(1.0, hits + misses), 4),
            "busiest": round(max(answered) * len(answered) / max(1.0, sum(answered)), 3),
        }
    return figures
