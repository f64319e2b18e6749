"""What scenarios measure, and what they wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.balancer.replicas import LIMIT_S, Replica
from loadtest.balancer.traffic import Balancer
from loadtest.openloop.generator import Sample
from loadtest.processes import wait_until
from loadtest.prometheus_text import total

HURRIED_S = 0.5
"""A call that waits longer has met a slow replica; Envoy sends it to another one then."""


def failures(sample: Sample) -> dict[str, int]:
    """How many calls ended with which code, but OK."""
    return {code: count for code, count in Counter(sample.status).items() if code != "OK"}


def common(sample: Sample) -> dict[str, Any]:
    """Calls, failures, and latencies in ms."""
    latency = sample.latency_s[sample.answered] * 1e3
    p50, p99 = np.quantile(latency, [0.5, 0.99]).tolist() if len(latency) else (float("nan"), float("nan"))
    return {
        "calls": len(sample.at),
        "failed": sum(failures(sample).values()),
        "codes": failures(sample),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
    }


def waits(sample: Sample) -> dict[str, Any]:
    """What calls had to wait at worst, and the share of those that waited for more than half a second."""
    waited = sample.latency_s
    return {"over_half_a_second": round(float((waited > HURRIED_S).mean()), 4), "longest_s": round(float(waited.max()), 2)}


def answered_by(replicas: Sequence[Replica]) -> list[float]:
    """Ranks that each replica has answered since it was started."""
    return [total(replica.metrics(), "kunlun_rank_rungs_total") for replica in replicas]


def wait_until_flowing(replicas: Sequence[Replica], before: Sequence[float]) -> None:
    """Until every replica has answered more than `before`."""

    def all_do() -> bool:
        return all(now > then for now, then in zip(answered_by(replicas), before, strict=True))

    wait_until(all_do, "not every replica got a call", LIMIT_S)


def wait_until_taken_in(balancer: Balancer, replicas: Sequence[Replica]) -> None:
    """Until the balancer sends calls to exactly these replicas."""
    wanted = {replica.address for replica in replicas}
    wait_until(lambda: balancer.healthy() == wanted, f"{balancer.name} did not send calls to {sorted(wanted)} alone", LIMIT_S)
