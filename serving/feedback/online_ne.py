"""Online Normalized Entropy: exact sums per task × version × slice, however outcomes arrive.

Every shown position counts once as an example and every (position, task) label once as a positive,
whatever is repeated, reordered or late. A label that comes before its impression waits for it.
What was already counted is kept per receipt as two bitmaps, for the attribution window.

Pure: no clock, no I/O. Fed by `serving.feedback.consumer`. The bitmaps live in this process; a
restarted consumer replays the outcome stream from its beginning, which rebuilds the sums as far as
the (length-bounded) stream reaches. Memory: about 300 bytes per receipt of the attribution window, at
most `max_receipts`; slice values beyond `MAX_SLICES` are counted together, since callers choose them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from model.metrics.normalized_entropy import NEState
from serving.feedback.outcome import Outcome
from serving.feedback.receipt import ServedList

MAX_SLICES = 100
ALL_SLICES, OTHER_SLICES = "*", "other"
_REORDER_MS = 3_600_000
"""Outcomes may reach the stream this much later than they were reported."""


class NEKey(NamedTuple):
    """What online NE is kept by."""

    task: str
    version: str
    slice_value: str


@dataclass(slots=True)
class _Counted:
    """Of one receipt: bit p of `shown`, bit p · tasks + t of `labels`; `waiting` labels lack their impression."""

    issued_ms: int
    shown: int = 0
    labels: int = 0
    waiting: int = 0


class OnlineNE:
    """Aggregates outcomes. `window_ms`: how long after serving an outcome is still taken.

    Beyond `max_receipts` the oldest bitmaps are given up (`forgotten`): a repeated report of such a
    receipt would count again.
    """

    def __init__(self, tasks: tuple[str, ...], window_ms: int = 7 * 86_400_000, max_receipts: int = 5_000_000) -> None:
        self._tasks, self._window_ms, self._max_receipts = tasks, window_ms, max_receipts
        self._slices: set[str] = set()
        self.forgotten = 0
        self._states: dict[NEKey, NEState] = {}
        self._receipts: OrderedDict[bytes, _Counted] = OrderedDict()
        self._newest_ms = 0
        self.outcomes = self.repeated = self.expired = 0

    def states(self) -> dict[NEKey, NEState]:
        """The sums; a copy."""
        return dict(self._states)

    @property
    def receipts_tracked(self) -> int:
        """Receipts whose bitmaps are kept."""
        return len(self._receipts)

    def apply(self, outcome: Outcome) -> None:
        """Count what is new in `outcome`."""
        self.outcomes += 1
        served, tasks = outcome.served, len(self._tasks)
        if served.predictions.shape[1] != tasks or outcome.reported_ms - served.issued_ms > self._window_ms:
            self.expired += 1
            return
        self._newest_ms = max(self._newest_ms, outcome.reported_ms)
        self._forget_old()
        counted = self._receipts.setdefault(outcome.identity, _Counted(served.issued_ms))
        shown = _bits(outcome.shown) & ~counted.shown
        counted.shown |= shown
        labels = (counted.waiting | _bits([p * tasks + t for p, t in outcome.labels])) & ~counted.labels
        now = labels & _spread(counted.shown, len(served), tasks)
        counted.waiting = labels & ~now
        counted.labels |= now
        if not shown and not now:
            self.repeated += 1
            return
        slice_value = self._slice(served.slice_value)
        for number, task in enumerate(self._tasks):
            impressions = NEState.of_impressions(served.predictions[_positions(shown), number])
            positives = NEState.of_positives(
                served.predictions[[b // tasks for b in _positions(now) if b % tasks == number], number]
            )
            key = NEKey(task, served.model_version, slice_value)
            self._states[key] = self._states.get(key, NEState()) + impressions + positives

    def _slice(self, value: str) -> str:
        """The value to count under: itself for the first `MAX_SLICES`, then one for all others."""
        if value in self._slices:
            return value
        if value == ALL_SLICES or len(self._slices) >= MAX_SLICES:
            return OTHER_SLICES
        self._slices.add(value)
        return value

    def _forget_old(self) -> None:
        """Drop bitmaps of receipts that no outcome may refer to any more, in order of first report."""
        while self._receipts:
            oldest = next(iter(self._receipts.values()))
            if self._newest_ms - oldest.issued_ms <= self._window_ms + _REORDER_MS:
                break
            self._receipts.popitem(last=False)
        while len(self._receipts) >= self._max_receipts:
            self._receipts.popitem(last=False)
            self.forgotten += 1


def offline_states(
    tasks: tuple[str, ...], lists: list[tuple[ServedList, list[int], list[tuple[int, int]]]]
) -> dict[NEKey, NEState]:
    """The same sums recomputed at once from (served, shown positions, labels); the check on `OnlineNE`."""
    states: dict[NEKey, NEState] = {}
    for served, shown, labels in lists:
        for number, task in enumerate(tasks):
            positive = {p for p, t in labels if t == number and p in shown}
            y = np.array([p in positive for p in shown], dtype=np.int64)
            key = NEKey(task, served.model_version, served.slice_value)
            states[key] = states.get(key, NEState()) + NEState.of(served.predictions[shown, number], y)
    return states


def _bits(numbers: tuple[int, ...] | list[int]) -> int:
    out = 0
    for n in numbers:
        out |= 1 << n
    return out


def _positions(bits: int) -> list[int]:
    """Set bits, lowest first."""
    out = []
    while bits:
        low = bits & -bits
        out.append(low.bit_length() - 1)
        bits ^= low
    return out


def _spread(shown: int, count: int, tasks: int) -> int:
    """Bits of every (position, task) whose position is shown."""
    if tasks == 1:
        return shown
    every = (1 << tasks) - 1
    out = 0
    for p in _positions(shown):
        if p < count:
            out |= every << (p * tasks)
    return out
