"""Which events a ranking request sees: one rule, applied offline and online.

The store keeps a user's events of one type in *arrival* order. A request reads the newest
`read_window` arrivals; `visible_history` leaves out what a frequent event type folds in later,
orders the rest by event time (ties keep arrival order) and keeps the last `cap`. Offline preparation
applies the same function to the events that had arrived before the request, so both sides build
identical histories, late and disordered arrivals included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.records import ARRIVAL_MS, TIME_MS, Records
from model.schema import EventType, fold_interval_ms, read_window


def visible_history(arrivals: Records, event: EventType, request_ms: int) -> Records:
    """What a request at `request_ms` sees of a user's arrivals [N] of one event type, oldest first [≤ cap]."""
    window = folded(arrivals[-event.read_window :], event.min_fold_interval_s, request_ms)
    return select_history(window, event.cap)


def visible_lengths(arrivals: Records, event: EventType, request_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lengths [N] of the histories that requests at these times see of one user's arrivals, all of them, in arrival order."""
    arrived = np.searchsorted(arrivals[ARRIVAL_MS], request_ms, side="left")
    if event.min_fold_interval_s <= 0:
        return np.minimum(arrived, event.cap)
    seen = zip(arrived.tolist(), request_ms.tolist(), strict=True)
    window, interval = event.read_window, event.min_fold_interval_s
    lengths = (min(event.cap, len(folded(arrivals[max(0, n - window) : n], interval, now))) for n, now in seen)
    return np.fromiter(lengths, np.int64, len(request_ms))


def select_history(arrivals: Records, cap: int) -> Records:
    """The newest `cap` events by event time, oldest first, among the newest arrivals [N] → [≤ cap]."""
    window = arrivals[-read_window(cap) :]
    return window.take(np.argsort(window[TIME_MS], kind="stable")[-cap:])  # `take` copies records several times faster than []


def folded(arrivals: Records, interval_s: float, request_ms: int) -> Records:
    """Events that happened before the last multiple of `interval_s` (0: all events).

    A function of the request time and the events alone: a frequent event type changes a user's state
    at most once per interval (and when something arrives late), whatever any cache holds.
    """
    interval_ms = fold_interval_ms(interval_s)
    if not interval_ms:
        return arrivals
    return arrivals[arrivals[TIME_MS] < request_ms // interval_ms * interval_ms]


def arrived_before(arrivals: Records, time_ms: int) -> Records:
    """The prefix of an arrival-ordered history that had arrived strictly before `time_ms`."""
    return arrivals[: int(np.searchsorted(arrivals[ARRIVAL_MS], time_ms, side="left"))]


def newest_event_ms(histories: list[Records]) -> int | None:
    """Time of the newest event of all given histories, None if they are all empty."""
    newest = [int(h[TIME_MS].max()) for h in histories if len(h)]
    return max(newest) if newest else None


def ages_s(history: Records, newest_ms: int) -> NDArray[np.float32]:
    """Age in seconds relative to the newest event of the user's histories, ≥ 0, float32 [T]."""
    return ((newest_ms - history[TIME_MS]) / 1000.0).astype(np.float32)


__all__ = [
    "ages_s",
    "arrived_before",
    "folded",
    "newest_event_ms",
    "read_window",
    "select_history",
    "visible_history",
    "visible_lengths",
]
