"""How many sources there are when: the arithmetic of the shapes, and the capacity search's view of a running load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Level = tuple[int, float]
"""Users, and how many are started or stopped per second to get there."""


def ramp_level(at_s: float, length_s: float, users: int, peak: int) -> Level | None:
    """Linear from `users` to `peak` and back; None when `length_s` is over."""
    if at_s >= length_s:
        return None
    nearness = 1 - abs(2 * at_s / length_s - 1)
    level = round(users + (peak - users) * nearness)
    return max(1, level), max(1.0, abs(peak - users))


def spike_level(at_s: float, length_s: float, users: int, peak: int) -> Level | None:
    """`peak` in the middle third, `users` before and after; None when `length_s` is over."""
    if at_s >= length_s:
        return None
    is_peak = length_s / 3 <= at_s < 2 * length_s / 3
    return max(1, peak if is_peak else users), float(max(1, peak, users))


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
