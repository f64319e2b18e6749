"""What is new in outcomes: every impression counts once as an example, every label once as a positive.

However outcomes are repeated, split, reordered or late: what has been counted of a receipt is a pair of bitmaps, and a
label that comes before its impression waits for it there. What is new goes into the bucket of the minute in which the
list was served, so a late positive revises the minute that it belongs to.

Pure: no clock, no I/O. `serving.feedback.consumer` reads the bitmaps, feeds a batch, and stores what comes out in one
atomic step. Cost: a few microseconds per impression, numpy over the whole batch.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.metrics.normalized_entropy import NEState
from model.metrics.paired_ne import PairedNE
from model.metrics.score_histogram import BINS, score_bins
from serving.feedback.outcome import Outcome
from serving.feedback.receipt import ServedList
from serving.feedback.sums import COUNTS, Kind, SumKey, Sums, Vector, add, of_paired_ne

MINUTE_MS = 60_000
LATE_MS = 60_000
"""A label that is reported longer than this after the list was served is a late positive."""

MAX_SLICES = 100
ALL_SLICES, OTHER_SLICES = "*", "other"
_HEAD = struct.Struct("<4I")


class ReceiptKey(NamedTuple):
    """One receipt: the minute in which it was issued, and its identity."""

    minute: int
    identity: bytes


@dataclass(frozen=True)
class Seen:
    """Of one receipt: bit p of `shown`, bit p · tasks + t of the others.

    `labels` count, `waiting` ones lack their impression; `late`: those of both that were first reported late.
    """

    shown: int = 0
    labels: int = 0
    waiting: int = 0
    late: int = 0

    def encode(self) -> bytes:
        """u32[4] lengths · the four numbers, little-endian."""
        parts = [number.to_bytes((number.bit_length() + 7) // 8, "little") for number in astuple(self)]
        return _HEAD.pack(*map(len, parts)) + b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Seen:
        """The inverse; raises `ValueError`."""
        try:
            lengths = _HEAD.unpack_from(data)
        except struct.error as error:
            raise ValueError(f"feedback bitmaps: {error}") from error
        at, numbers = _HEAD.size, []
        for length in lengths:
            numbers.append(int.from_bytes(data[at : at + length], "little"))
            at += length
        return cls(*numbers)


def receipt_key(outcome: Outcome) -> ReceiptKey:
    """Where the bitmaps of an outcome's receipt are."""
    return ReceiptKey(outcome.served.issued_ms // MINUTE_MS, outcome.identity)


class Slices:
    """Slice values that are counted separately: callers choose them, so the first `MAX_SLICES` and then one for all others."""

    def __init__(self, known: set[str]) -> None:
        self._known = known - {OTHER_SLICES}

    def name(self, value: str) -> str:
        """The value to count under."""
        if value in self._known:
            return value
        if value in (ALL_SLICES, OTHER_SLICES) or len(self._known) >= MAX_SLICES:
            return OTHER_SLICES
        self._known.add(value)
        return value


@dataclass
class Revision:
    """What a batch changes: bitmaps as they are now, sums to be added to minutes' buckets and to what was reported in all."""

    seen: dict[ReceiptKey, Seen] = field(default_factory=dict)
    buckets: dict[int, Sums] = field(default_factory=dict)
    reported: Sums = field(default_factory=dict)


@dataclass
class _Group:
    """Impressions and positives of one minute, version and slice, as they come."""

    impressions: list[NDArray[np.float32]] = field(default_factory=list)  # [n, tasks] each
    positives: list[tuple[float, int, int]] = field(default_factory=list)  # prediction, task, 1 if it was late


class Batch:
    """One batch of outcomes in the order of the stream. `seen`: bitmaps of their receipts, as stored.

    Buckets before `first_open` have matured: what comes for them is too late.
    """

    def __init__(self, window_ms: int, seen: Mapping[ReceiptKey, Seen], slices: Slices, first_open: int = 0) -> None:
        self._window_ms, self._first_open = window_ms, first_open
        self._seen, self._slices = dict(seen), slices
        self._changed: set[ReceiptKey] = set()
        self._groups: dict[tuple[int, str, str, tuple[str, ...]], _Group] = {}
        self._canaries: dict[int, Sums] = {}
        self._counts = dict.fromkeys(COUNTS, 0)

    def unreadable(self) -> None:
        """An entry of the stream that is no outcome."""
        self._counts["unreadable"] += 1

    def add(self, outcome: Outcome) -> None:
        """Count what is new in one outcome."""
        served, tasks, key = outcome.served, len(outcome.served.tasks), receipt_key(outcome)
        beyond = max((*outcome.shown, *(p for p, _ in outcome.labels)), default=-1) >= len(served)
        unknown = any(task >= tasks for _, task in outcome.labels) or len(served.tasks) != served.predictions.shape[1]
        if beyond or unknown or not _is_finite(served):
            self.unreadable()
            return
        self._counts["outcomes"] += 1
        age_ms = outcome.reported_ms - served.issued_ms
        if age_ms > self._window_ms or key.minute < self._first_open:
            self._counts["expired"] += 1
            return
        before = self._seen.get(key, Seen())
        shown = before.shown | _bits(outcome.shown)
        known = before.labels | before.waiting
        said = known | _bits([p * tasks + t for p, t in outcome.labels])
        labels = said & _spread(shown, tasks)
        late = before.late | (said & ~known if age_ms > LATE_MS else 0)
        after = Seen(shown, labels, said & ~labels, late)
        if after == before:
            self._counts["repeated"] += 1
            return
        self._seen[key] = after
        self._changed.add(key)
        self._counts["lists"] += not before.shown and bool(shown)
        self._counts["labels"] += said.bit_count() - known.bit_count()
        self._counts["joined_labels"] += labels.bit_count() - before.labels.bit_count()
        name = key.minute, served.model_version, self._slices.name(served.slice_value), served.tasks
        group = self._groups.setdefault(name, _Group())
        group.impressions.append(served.predictions[_positions(shown & ~before.shown)])
        for position, task in (divmod(bit, tasks) for bit in _positions(labels & ~before.labels)):
            is_late = after.late >> (position * tasks + task) & 1
            group.positives.append((float(served.predictions[position, task]), task, is_late))
        if served.canary is not None:
            bucket = self._canaries.setdefault(key.minute, {})
            for number, task_name in enumerate(served.tasks):
                sums = _paired(served, after, number, tasks) - _paired(served, before, number, tasks)
                add(bucket, {SumKey(Kind.CANARY, task_name, served.model_version, served.canary.version): sums})

    def finish(self) -> Revision:
        """What all of it comes to."""
        revision = Revision({key: self._seen[key] for key in self._changed}, self._canaries)
        for (minute, version, name, tasks), group in self._groups.items():
            bucket = revision.buckets.setdefault(minute, {})
            rows = np.concatenate(group.impressions)
            positives = np.array(group.positives, np.float64).reshape(-1, 3)
            for number, task in enumerate(tasks):
                own = positives[positives[:, 1] == number]
                state = NEState.of_impressions(rows[:, number]) + NEState.of_positives(own[:, 0])
                add(bucket, {SumKey(Kind.NE, task, version, name): np.array([*astuple(state), own[:, 2].sum()])})
                add(bucket, {SumKey(Kind.SCORES, task, version): _histograms(rows[:, number], own[:, 0])})
        for bucket in revision.buckets.values():
            add(revision.reported, bucket)
        add(revision.reported, {SumKey(Kind.COUNTS): np.array(list(self._counts.values()), np.float64)})
        return revision


def _is_finite(served: ServedList) -> bool:
    shadow = served.predictions if served.canary is None else served.canary.predictions
    return bool(np.isfinite(served.predictions).all() and np.isfinite(shadow).all())


def _histograms(scores: NDArray[np.floating], positives: NDArray[np.floating]) -> Vector:
    both = [np.bincount(score_bins(values), minlength=BINS) for values in (scores, positives)]
    return np.concatenate(both).astype(np.float64)


def _paired(served: ServedList, seen: Seen, task: int, tasks: int) -> Vector:
    """The `PairedNE` sums of one list of which `seen` is known."""
    positions = _positions(seen.shown)
    if served.canary is None or not positions:
        return of_paired_ne(PairedNE())
    labels = np.array([seen.labels >> (p * tasks + task) & 1 for p in positions])
    live, canary = served.predictions[positions, task], served.canary.predictions[positions, task]
    return of_paired_ne(PairedNE.of(live, canary, labels, np.zeros(len(positions), np.int64)))


def _bits(numbers: Sequence[int]) -> int:
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


def _spread(shown: int, tasks: int) -> int:
    """Bits of every (position, task) whose position is shown."""
    if tasks == 1:
        return shown
    every = (1 << tasks) - 1
    out = 0
    for p in _positions(shown):
        out |= every << (p * tasks)
    return out
