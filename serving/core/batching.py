"""Forming batches from waiting work: pure, without clock, threads or asyncio.

`WorkQueue` is the scheduler's queue. Work of one group (a graph, and for `encode_user` a history
level) may share a batch. A batch is the work that is due first, plus whatever of its group follows in
order of due time, as long as merging pays: one call less saves the call's fixed cost for everybody
who waits, and delays everybody in the batch by the work added. Work larger than the time budget is
cut into pieces. Cancelled, expired and doomed work (whose deadline no engine could meet any more)
never enters a batch. Background work is taken only when nothing else waits, within a budget of its
own, so that whatever arrives meanwhile waits that long at most.

Invariants: `len` and `foreground_flops` tell of live foreground work only. Every row of every piece
of work is dispatched exactly once, or the work is dropped or cancelled; the rows of a batch come in
the order of its pieces.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, inf
from typing import NamedTuple

from serving.core.work_time import WorkTime


class Group(NamedTuple):
    """What may share a batch: the graph, and the history level of `encode_user` (0 for scoring)."""

    graph: str
    level: int = 0


class Reason(StrEnum):
    """Why a batch was dispatched as it is."""

    IDLE = "idle"  # a slot was free and this is all that waited
    MERGED = "merged"  # several requests, whose merging paid
    FULL = "full"  # the budget or the largest bucket was reached
    SPLIT = "split"  # one piece of work larger than a batch
    BACKGROUND = "background"  # nothing else waited


@dataclass(eq=False)
class Work:
    """A unit of waiting work: `rows` rows of equal cost plus a fixed cost, FLOPs.

    `due` orders the queue; after `deadline` the work is worthless. Both in seconds on one clock.
    """

    group: Group
    rows: int
    flops_per_row: float
    flops_fixed: float
    deadline: float
    due: float = inf
    background: bool = False
    cancelled_at: float = inf
    taken: int = 0
    sequence: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.due = min(self.due, self.deadline)

    @property
    def waiting_flops(self) -> float:
        """Cost of the rows that no batch has taken yet."""
        return (self.rows - self.taken) * self.flops_per_row + (0.0 if self.taken else self.flops_fixed)


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a piece of work."""

    work: Work
    start: int
    stop: int

    @property
    def flops(self) -> float:
        """Cost; the fixed part counts with the first rows."""
        return (self.stop - self.start) * self.work.flops_per_row + (self.work.flops_fixed if self.start == 0 else 0.0)


@dataclass(frozen=True)
class Batch:
    """Pieces of one group, to be run together."""

    group: Group
    pieces: tuple[Piece, ...]
    reason: Reason

    @property
    def rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)

    @property
    def flops(self) -> float:
        return sum(piece.flops for piece in self.pieces)


@dataclass(frozen=True)
class Limits:
    """Largest batch of a graph: rows, and pieces (requests of a score batch)."""

    rows: int
    pieces: int


@dataclass(frozen=True)
class Budget:
    """Most engine seconds of one batch, and of one background batch."""

    batch_s: float = inf
    background_s: float = inf


_Heap = list[tuple[float, int, Work]]


class WorkQueue:
    """Waiting work in order of due time.

    `foreground_flops`: cost by graph of the live foreground work that no batch has taken yet.
    """

    def __init__(self, limits: Mapping[str, Limits], times: WorkTime, budget: Budget) -> None:
        self._limits, self._times, self._budget = limits, times, budget
        self._foreground: dict[Group, _Heap] = {}
        self._background: dict[Group, _Heap] = {}
        self._sequence = itertools.count()
        self._live = 0
        self._live_background = 0
        self.foreground_flops = dict.fromkeys(limits, 0.0)

    def __len__(self) -> int:
        """Pieces of foreground work that still have rows to run; heap entries are more (cancelled, promoted)."""
        return self._live

    def push(self, work: Work) -> None:
        """Add work that has not been queued before."""
        work.sequence = next(self._sequence)
        self._count(work)
        self._insert(work)

    def promote(self, work: Work, deadline: float, due: float = inf) -> None:
        """Make queued work at least this urgent; its old entry is skipped when it surfaces."""
        due = min(due, deadline)
        if work.taken == work.rows:
            return
        if work.background:
            self._live_background -= 1
            work.background, work.deadline, work.due = False, deadline, due
            self._count(work)
        elif deadline > work.deadline or due < work.due:
            # Those who joined may have longer than the first asker had: the work is worth doing until the last deadline.
            work.deadline, work.due = max(work.deadline, deadline), min(work.due, due)
        else:
            return
        self._insert(work)

    def cancel(self, work: Work, now: float) -> None:
        """Forget the rows that no batch has taken; its entry is skipped when it surfaces."""
        work.cancelled_at = min(work.cancelled_at, now)
        self._take_until(work, work.rows)

    def form(self, now: float, *, merge: bool = True, background: bool = True) -> tuple[Batch | None, list[Work]]:
        """The next batch (of background work only if allowed), and the work dropped because its deadline cannot be met."""
        dropped: list[Work] = []
        for heaps in (self._foreground, self._background) if background else (self._foreground,):
            group = self._first_due(heaps, now, dropped)
            if group is not None:
                in_background = heaps is self._background
                return self._take(heaps[group], group, now, dropped, merge=merge, background=in_background), dropped
        return None, dropped

    def _insert(self, work: Work) -> None:
        heaps = self._background if work.background else self._foreground
        heapq.heappush(heaps.setdefault(work.group, []), (work.due, work.sequence, work))

    def _count(self, work: Work) -> None:
        """Work has come to wait."""
        if work.background:
            self._live_background += 1
        else:
            self._live += 1
            self.foreground_flops[work.group.graph] += work.waiting_flops

    def _take_until(self, work: Work, stop: int) -> None:
        """The rows before `stop` wait no more."""
        if work.taken == work.rows:
            return
        before = work.waiting_flops
        work.taken = stop
        if work.background:
            self._live_background -= stop == work.rows
            return
        self._live -= stop == work.rows
        if self._live:
            self.foreground_flops[work.group.graph] -= before - work.waiting_flops
        else:
            self.foreground_flops = dict.fromkeys(self.foreground_flops, 0.0)  # sums of floats drift

    def _clean(self, heap: _Heap, now: float, dropped: list[Work]) -> None:
        """Remove what cannot run from the head of the heap."""
        while heap:
            due, _, work = heap[0]
            if _is_live(work, due):
                if work.deadline > now + self._times.least_s(work.group.graph, work.waiting_flops):
                    return
                self._take_until(work, work.rows)
                dropped.append(work)
            heapq.heappop(heap)

    def _first_due(self, heaps: dict[Group, _Heap], now: float, dropped: list[Work]) -> Group | None:
        best: Group | None = None
        for group, heap in heaps.items():
            self._clean(heap, now, dropped)
            if heap and (best is None or heap[0][:2] < heaps[best][0][:2]):
                best = group
        return best

    def _take(self, heap: _Heap, group: Group, now: float, dropped: list[Work], *, merge: bool, background: bool) -> Batch:
        limits = self._limits[group.graph]
        budget = self._times.flops_in(group.graph, self._budget.background_s if background else self._budget.batch_s)
        first = heap[0][2]
        if first.rows - first.taken > limits.rows or first.waiting_flops > budget:
            piece = self._cut(first, limits.rows, budget)
            if first.taken == first.rows:
                heapq.heappop(heap)
            reason = Reason.FULL if piece.stop - piece.start == first.rows else Reason.SPLIT
            return Batch(group, (piece,), Reason.BACKGROUND if background else reason)
        pieces = [self._take_whole(heap)]
        rows, flops, reason = pieces[0].stop - pieces[0].start, pieces[0].flops, Reason.IDLE
        while merge:
            self._clean(heap, now, dropped)
            if not heap:
                break
            work = heap[0][2]
            left, added = work.rows - work.taken, work.waiting_flops
            if rows + left > limits.rows or flops + added > budget or len(pieces) == limits.pieces:
                reason = Reason.FULL
                break
            waiting = self._live_background if background else self._live
            if len(pieces) * self._times.added_s(group.graph, added) > waiting * self._times.fixed_s(group.graph):
                break
            pieces.append(self._take_whole(heap))
            rows, flops, reason = rows + left, flops + added, Reason.MERGED
        return Batch(group, tuple(pieces), Reason.BACKGROUND if background else reason)

    def _take_whole(self, heap: _Heap) -> Piece:
        work = heapq.heappop(heap)[2]
        piece = Piece(work, work.taken, work.rows)
        self._take_until(work, work.rows)
        return piece

    def _cut(self, work: Work, most_rows: int, budget: float) -> Piece:
        """The first of as few equal pieces as the budget (FLOPs) allows, at least one row."""
        start, left = work.taken, work.rows - work.taken
        affordable = (budget - work.flops_fixed) / work.flops_per_row if work.flops_per_row > 0 else most_rows
        largest = int(max(1, min(affordable, most_rows)))
        self._take_until(work, start + ceil(left / ceil(left / largest)))
        return Piece(work, start, work.taken)


def _is_live(work: Work, entry_due: float) -> bool:
    """False for finished or cancelled work, which has no rows left, and for entries that a promotion has replaced."""
    return work.taken < work.rows and entry_due == work.due
