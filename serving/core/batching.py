"""Forming batches from waiting work: pure, without clock, threads or asyncio.

`WorkQueue` is the scheduler's queue. Work of one group (a graph, and for `encode_user` a history
level) may share a batch. A batch is the most urgent work plus whatever of its group follows in
deadline order, up to a work budget; work larger than the budget is cut into pieces. Cancelled and
expired work never enters a batch. Background work is taken only when nothing else waits.

Invariant: every row of every piece of work is dispatched exactly once, or the work is dropped; the
rows of a batch come in the order of its pieces.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil
from typing import NamedTuple


class Group(NamedTuple):
    """What may share a batch: the graph, and the history level of `encode_user` (0 for scoring)."""

    graph: str
    level: int = 0


class Reason(StrEnum):
    """Why a batch was dispatched as it is."""

    IDLE = "idle"  # a slot was free and this is all that waited
    FULL = "full"  # the budget or the largest bucket was reached
    SPLIT = "split"  # one piece of work larger than a batch
    BACKGROUND = "background"  # nothing else waited


@dataclass(eq=False)
class Work:
    """A unit of waiting work: `rows` rows of equal cost plus a fixed cost, FLOPs; `deadline` in seconds."""

    group: Group
    rows: int
    flops_per_row: float
    flops_fixed: float
    deadline: float
    background: bool = False
    cancelled: bool = False
    taken: int = 0
    sequence: int = field(default=0, init=False)

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


@dataclass(frozen=True)
class Batch:
    """Pieces of one group, to be run together."""

    group: Group
    pieces: tuple[Piece, ...]
    reason: Reason

    @property
    def rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True)
class Limits:
    """Largest batch of a graph: rows, and pieces (requests of a score batch)."""

    rows: int
    pieces: int


_Heap = list[tuple[float, int, Work]]


class WorkQueue:
    """Waiting work in deadline order. `budget_flops` is read at every batch and may be changed."""

    def __init__(self, limits: Mapping[str, Limits], budget_flops: float) -> None:
        self.limits, self.budget_flops = limits, budget_flops
        self._foreground: dict[Group, _Heap] = {}
        self._background: dict[Group, _Heap] = {}
        self._sequence = itertools.count()

    def __len__(self) -> int:
        return sum(len(heap) for heaps in (self._foreground, self._background) for heap in heaps.values())

    def push(self, work: Work) -> None:
        """Add work that has not been queued before."""
        work.sequence = next(self._sequence)
        self._insert(work)

    def promote(self, work: Work, deadline: float) -> None:
        """Make queued work at least this urgent; its old entry is skipped when it surfaces."""
        if work.taken == work.rows or (deadline >= work.deadline and not work.background):
            return
        work.background, work.deadline = False, min(work.deadline, deadline) if not work.background else deadline
        self._insert(work)

    def form(self, now: float) -> tuple[Batch | None, list[Work]]:
        """The next batch, and the work dropped on the way (cancelled, or its deadline has passed)."""
        dropped: list[Work] = []
        for heaps in (self._foreground, self._background):
            group = self._most_urgent(heaps, now, dropped)
            if group is not None:
                batch = self._take(heaps[group], group, now, dropped, background=heaps is self._background)
                return batch, dropped
        return None, dropped

    def _insert(self, work: Work) -> None:
        heaps = self._background if work.background else self._foreground
        heapq.heappush(heaps.setdefault(work.group, []), (work.deadline, work.sequence, work))

    def _most_urgent(self, heaps: dict[Group, _Heap], now: float, dropped: list[Work]) -> Group | None:
        best: Group | None = None
        for group, heap in heaps.items():
            _clean(heap, now, dropped)
            if heap and (best is None or heap[0][:2] < heaps[best][0][:2]):
                best = group
        return best

    def _take(self, heap: _Heap, group: Group, now: float, dropped: list[Work], *, background: bool) -> Batch:
        limits, rows, flops = self.limits[group.graph], 0, 0.0
        pieces: list[Piece] = []
        reason = Reason.BACKGROUND if background else Reason.IDLE
        while heap:
            work = heap[0][2]
            left = work.rows - work.taken
            fits = rows + left <= limits.rows and flops + work.waiting_flops <= self.budget_flops
            if not pieces and not fits:
                pieces.append(piece := self._cut(work, limits.rows))
                reason = Reason.FULL if piece.stop - piece.start == work.rows else Reason.SPLIT
                if work.taken == work.rows:
                    heapq.heappop(heap)
                break
            if not fits or len(pieces) == limits.pieces:
                reason = Reason.FULL
                break
            flops += work.waiting_flops
            rows += left
            pieces.append(Piece(work, work.taken, work.rows))
            work.taken = work.rows
            heapq.heappop(heap)
            _clean(heap, now, dropped)
        return Batch(group, tuple(pieces), reason)

    def _cut(self, work: Work, most_rows: int) -> Piece:
        """The first of as few equal pieces as the budget allows, at least one row."""
        start, left = work.taken, work.rows - work.taken
        affordable = (self.budget_flops - work.flops_fixed) / work.flops_per_row if work.flops_per_row > 0 else most_rows
        largest = int(max(1, min(affordable, most_rows)))
        work.taken = start + ceil(left / ceil(left / largest))
        return Piece(work, start, work.taken)


def _clean(heap: _Heap, now: float, dropped: list[Work]) -> None:
    """Remove what cannot run from the head of the heap."""
    while heap:
        deadline, _, work = heap[0]
        if not _is_live(work, deadline):
            heapq.heappop(heap)
            if work.cancelled and work.taken < work.rows and deadline == work.deadline:
                dropped.append(work)
        elif work.deadline <= now:
            heapq.heappop(heap)
            dropped.append(work)
        else:
            return


def _is_live(work: Work, entry_deadline: float) -> bool:
    """False for cancelled or finished work and for entries that a promotion has replaced."""
    return not work.cancelled and work.taken < work.rows and entry_deadline == work.deadline
