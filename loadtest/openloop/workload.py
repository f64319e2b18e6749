"""What a load test sends, drawn in advance from a seed: arrivals, users, candidate counts, events, cancellations.

Arrivals are a Poisson process, users follow a Zipf law, candidate counts a bounded Pareto law. Everything
is fixed before the clock starts, so a slow server cannot slow the load down (no coordinated omission).
Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.config import StrictModel

Share = Annotated[float, Field(ge=0, le=1)]


class Workload(StrictModel):
    """Parameters of one run.

    `rate`: requests per second; `seconds`: how long arrivals last. `users`, `user_zipf`: population and
    exponent. `candidates_mean`, `candidates_max`: of the bounded Pareto law with exponent
    `candidates_tail` (the smaller, the heavier). `event_share`: requests followed by an event of their
    user. `deadline_ms`: of every call. `cancel_share`: calls that the client cancels, after a uniformly
    drawn part of `cancel_within_ms`. `hurried_share`: calls whose deadline is only `hurried_ms`.
    """

    rate: Annotated[float, Field(gt=0)]
    seconds: Annotated[float, Field(gt=0)]
    seed: int = 0
    users: Annotated[int, Field(ge=1)] = 1000
    user_zipf: Annotated[float, Field(ge=0)] = 0.8
    items: Annotated[int, Field(ge=1)] = 2000
    candidates_mean: Annotated[float, Field(ge=1)] = 100.0
    candidates_max: Annotated[int, Field(ge=1)] = 1000
    candidates_tail: Annotated[float, Field(gt=0)] = 1.5
    event_share: Share = 0.0
    deadline_ms: Annotated[float, Field(gt=0)] = 1000.0
    cancel_share: Share = 0.0
    cancel_within_ms: Annotated[float, Field(gt=0)] = 100.0
    hurried_share: Share = 0.0
    hurried_ms: Annotated[float, Field(gt=0)] = 20.0


@dataclass(frozen=True)
class Plan:
    """One run, request by request; times in seconds from the start."""

    at: NDArray[np.float64]  # [N], ascending
    user: NDArray[np.int64]  # [N], 0 … users − 1; 0 is the most active
    candidates: NDArray[np.int64]  # [N]
    deadline_s: NDArray[np.float64]  # [N]
    cancel_after_s: NDArray[np.float64]  # [N], NaN: never
    event_after: NDArray[np.bool_]  # [N]
    item_seed: int

    def __len__(self) -> int:
        return len(self.at)

    def items(self, number: int, items: int) -> NDArray[np.int64]:
        """Distinct candidates of one request, the same in every run of the plan."""
        rng = np.random.default_rng((self.item_seed, number))
        return rng.choice(items, int(self.candidates[number]), replace=False)


def draw(workload: Workload) -> Plan:
    """The plan of a workload: a function of its parameters alone."""
    rng = np.random.default_rng(workload.seed)
    count = max(1, int(rng.poisson(workload.rate * workload.seconds)))
    at = np.sort(rng.uniform(0, workload.seconds, count))  # a Poisson process, given its count
    weights = np.arange(1, workload.users + 1, dtype=np.float64) ** -workload.user_zipf
    cancelled = rng.random(count) < workload.cancel_share
    hurried = rng.random(count) < workload.hurried_share
    return Plan(
        at=at,
        user=rng.choice(workload.users, count, p=weights / weights.sum()),
        candidates=_candidate_counts(workload, rng, count),
        deadline_s=np.where(hurried, workload.hurried_ms, workload.deadline_ms) / 1e3,
        cancel_after_s=np.where(cancelled, rng.uniform(0, workload.cancel_within_ms / 1e3, count), np.nan),
        event_after=rng.random(count) < workload.event_share,
        item_seed=workload.seed,
    )


def of_length(plan: Plan, count: int, workload: Workload) -> Plan:
    """A plan of exactly `count` requests at the workload's rate; users and candidate counts mean nothing in it."""
    at = np.cumsum(np.random.default_rng(workload.seed).exponential(1 / workload.rate, count))
    numbers = np.arange(count) % len(plan)
    columns = {
        name: getattr(plan, name)[numbers] for name in ("user", "candidates", "deadline_s", "cancel_after_s", "event_after")
    }
    return Plan(at=at, item_seed=plan.item_seed, **columns)


def _candidate_counts(workload: Workload, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Bounded Pareto counts whose mean is the workload's: the lower end is solved for."""
    return bounded_pareto(
        workload.candidates_mean, min(workload.candidates_max, workload.items), workload.candidates_tail, rng, count
    )


def bounded_pareto(mean: float, most: int, tail: float, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Counts [count] from 1 to `most` of that mean; the smaller `tail`, the heavier."""
    if mean >= most:
        return np.full(count, most)
    return _quantile(rng.random(count), _lower_end(mean, most, tail), most, tail)


@cache
def _lower_end(mean: float, most: int, tail: float) -> float:
    low, high = 0.01, float(mean)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean(middle, most, tail) < mean else (low, middle)
    return low


def _quantile(u: NDArray[np.float64], low: float, high: int, tail: float) -> NDArray[np.int64]:
    sizes = low / (1 - u * (1 - (low / high) ** tail)) ** (1 / tail)
    counts: NDArray[np.int64] = np.clip(np.round(sizes), 1, high).astype(np.int64)
    return counts


def _mean(low: float, high: int, tail: float) -> float:
    u = (np.arange(20_000) + 0.5) / 20_000
    return float(_quantile(u, low, high, tail).mean())
