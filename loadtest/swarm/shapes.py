"""How many sources there are when: the arithmetic of the shapes, and the capacity search's view of a running load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from loadtest.openloop.capacity import Capacity

Level = tuple[int, float]
"""Users, and how many are started or stopped per second to get there."""

DEVIATIONS = 5.0


def check_peak(peak: int) -> None:
    """Raises `ValueError` for a peak that is none."""
    if peak < 1:
        raise ValueError(f"peak-users: expected the number of users at the peak of the shape, found {peak}")


def ramp_level(at_s: float, length_s: float, users: int, peak: int) -> Level | None:
    """Linear from `users` to `peak` and back; None when `length_s` is over. Raises `ValueError`."""
    check_peak(peak)
    if at_s >= length_s:
        return None
    nearness = 1 - abs(2 * at_s / length_s - 1)
    level = round(users + (peak - users) * nearness)
    return max(1, level), max(1.0, abs(peak - users))


def spike_level(at_s: float, length_s: float, users: int, peak: int) -> Level | None:
    """`peak` in the middle third, `users` before and after; None when `length_s` is over. Raises `ValueError`."""
    check_peak(peak)
    if at_s >= length_s:
        return None
    is_peak = length_s / 3 <= at_s < 2 * length_s / 3
    return max(1, peak if is_peak else users), float(max(1, peak, users))


def whole_users(rate: float, rate_per_user: float) -> int:
    """Users that call about `rate` times per second together."""
    return max(1, round(rate / rate_per_user))


def in_whole_users(found: Capacity, rate_per_user: float) -> Capacity:
    """What was searched as what was sent."""

    def sent(rate: float) -> float:
        return whole_users(rate, rate_per_user) * rate_per_user if 0 < rate < float("inf") else rate

    return replace(found, rate=sent(found.rate), fails_at=sent(found.fails_at))


def check_sent(counted: int, expected: float) -> None:
    """Raises `RuntimeError` when fewer calls were counted than a Poisson process of mean `expected` sends by chance."""
    if counted < expected - DEVIATIONS * sqrt(expected) - 1:
        raise RuntimeError(
            f"expected about {expected:.0f} Ranks, found {counted}: workers have gone, lag behind, or have other clocks; "
            "the rate found would be theirs, so add workers or a smaller --first-guess"
        )


def misses_between(
    seconds: Mapping[int, Sequence[int]], first: int, last: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(due, missed) by second as what `find_capacity` takes: times [N] from `first`, and which calls missed [N]."""
    at, missed = [], []
    for second in range(first, last):
        due, bad = seconds.get(second, (0, 0))
        at += [float(second - first)] * due
        missed += [number < bad for number in range(due)]
    return np.array(at), np.array(missed, dtype=np.bool_)
