"""Forming batches from waiting work: pure, without clock, threads or asyncio.

`WorkQueue` is the scheduler's queue. Work of one group (a graph, and for `encode_user` a history
level) may share a batch. A batch is the most urgent work plus whatever of its group follows in
deadline order, up to a work budget; work larger than the budget is cut into pieces. Cancelled and
expired work never enters a batch. Background work is taken only when nothing else waits, one piece
at a time, so that whatever arrives meanwhile waits for one piece at most.

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
    """Waiting work in deadline order. `budget_flops` is read at every batch and may be changed.

    `foreground_flops`: cost by graph of the live foreground work that no batch has taken yet.
    """

    def __init__(self, limits: Mapping[str, Limits], budget_flops: float) -> None:
        self.limits, self.budget_flops = limits, budget_flops
        self._foreground: dict[Group, _Heap] = {}
        self._background: dict[Group, _Heap] = {}
        self._sequence = itertools.count()
        self._live = 0
        self.foreground_flops = dict.fromkeys(limits, 0.0)

    def __len__(self) -> int:
        """Pieces of foreground work that still have rows to run; heap entries are more (cancelled, promoted)."""
        return self._live

    def push(self, work: Work) -> None:
        """Add work that has not been queued before."""
        work.sequence = next(self._sequence)
        self._count(work)
        self._insert(work)

    def promote(self, work: Work, deadline: float) -> None:
        """Make queued work at least this urgent; its old entry is skipped when it surfaces."""
        if work.taken == work.rows or (deadline >= work.deadline and not work.background):
            return
        if work.background:
            work.background, work.deadline = False, deadline
            self._count(work)
        else:
            work.deadline = min(work.deadline, deadline)
        self._insert(work)

    def cancel(self, work: Work) -> None:
        """Forget the rows that no batch has taken; its entry is skipped when it surfaces."""
        work.cancelled = True
        self._take_until(work, work.rows)

    def form(self, now: float, *, background: bool = True) -> tuple[Batch | None, list[Work]]:
        """The next batch (of background work only if allowed), and the work dropped because its deadline has passed."""
        dropped: list[Work] = []
        for heaps in (self._foreground, self._background) if background else (self._foreground,):
            group = self._most_urgent(heaps, now, dropped)
            if group is not None:
                batch = self._take(heaps[group], group, now, dropped, background=heaps is self._background)
                return batch, dropped
        return None, dropped

    def _insert(self, work: Work) -> None:
        heaps = self._background if work.background else self._foreground
        heapq.heappush(heaps.setdefault(work.group, []), (work.deadline, work.sequence, work))

    def _count(self, work: Work) -> None:
        """Foreground work has come to wait."""
        if not work.background:
            self._live += 1
            self.foreground_flops[work.group.graph] += work.waiting_flops

    def _take_until(self, work: Work, stop: int) -> None:
        """The rows before `stop` wait no more."""
        if work.taken == work.rows:
            return
        before = work.waiting_flops
        work.taken = stop
        if work.background:
            return
        self._live -= stop == work.rows
        if self._live:
            self.foreground_flops[work.group.graph] -= before - work.waiting_flops
        else:
            self.foreground_flops = dict.fromkeys(self.foreground_flops, 0.0)  # sums of floats drift

    def _clean(self, heap: _Heap, now: float, dropped: list[Work]) -> None:
        """Remove what cannot run from the head of the heap."""
        while heap:
            deadline, _, work = heap[0]
            if _is_live(work, deadline):
                if deadline > now:
                    return
                self._take_until(work, work.rows)
                dropped.append(work)
            heapq.heappop(heap)

    def _most_urgent(self, heaps: dict[Group, _Heap], now: float, dropped: list[Work]) -> Group | None:
        best: Group | None = None
        for group, heap in heaps.items():
            self._clean(heap, now, dropped)
            if heap and (best is None or heap[0][:2] < heaps[best][0][:2]):
                best = group
        return best

    def _take(self, heap: _Heap, group: Group, now: float, dropped: list[Work], *, background: bool) -> Batch:
        limits, rows, flops = self.limits[group.graph], 0, 0.0
        most_pieces = 1 if background else limits.pieces
        pieces: list[Piece] = []
        reason = Reason.BACKGROUND if background else Reason.IDLE
        while heap:
            work = heap[0][2]
            left = work.rows - work.taken
            fits = rows + left <= limits.rows and flops + work.waiting_flops <= self.budget_flops
            if not pieces and not fits:
                pieces.append(piece := self._cut(work, limits.rows))
                if not background:
                    reason = Reason.FULL if piece.stop - piece.start == work.rows else Reason.SPLIT
                if work.taken == work.rows:
                    heapq.heappop(heap)
                break
            if not fits or len(pieces) == most_pieces:
                reason = reason if background else Reason.FULL
                break
            flops += work.waiting_flops
            rows += left
            pieces.append(Piece(work, work.taken, work.rows))
            self._take_until(work, work.rows)
            heapq.heappop(heap)
            self._clean(heap, now, dropped)
        return Batch(group, tuple(pieces), reason)

    def _cut(self, work: Work, most_rows: int) -> Piece:
        """The first of as few equal pieces as the budget allows, at least one row."""
        start, left = work.taken, work.rows - work.taken
        affordable = (self.budget_flops - work.flops_fixed) / work.flops_per_row if work.flops_per_row > 0 else most_rows
        largest = int(max(1, min(affordable, most_rows)))
        self._take_until(work, start + ceil(left / ceil(left / largest)))
        return Piece(work, start, work.taken)


def _is_live(work: Work, entry_deadline: float) -> bool:
    """False for finished or cancelled work, which has no rows left, and for entries that a promotion has replaced."""
    return work.taken < work.rows and entry_deadline == work.deadline
