"""Who runs what when: the policy of the engine slots. Pure: no clock, threads, asyncio or device.

Called by the scheduler with the time as an argument. Every slot runs one batch and may hold one more.
An idle slot gets work at once. A busy slot is handed its next batch when the running one is predicted
to end within `lead_s`: late enough that what arrives meanwhile still chooses its place, early enough
that the slot never waits for the event loop. While several slots are idle nothing is merged: two
requests on two slots end sooner than in one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.core.batching import Batch, Budget, Limits, Work, WorkQueue
from serving.core.work_time import WorkTime


@dataclass
class _Held:
    """A batch in a slot, and how long it will take."""

    batch: Batch
    predicted_s: float


@dataclass
class _Slot:
    held: deque[_Held] = field(default_factory=deque)
    started: float = 0.0

    def remaining_s(self, now: float) -> float:
        """Predicted time until everything held has run."""
        if not self.held:
            return 0.0
        running, *ahead = self.held
        return max(0.0, self.started + running.predicted_s - now) + sum(held.predicted_s for held in ahead)


class Dispatcher:
    """Owns the queue and knows what every slot holds. Slots are numbers 0 … slots−1."""

    def __init__(self, slots: int, limits: Mapping[str, Limits], times: WorkTime, budget: Budget, lead_s: float) -> None:
        self.queue = WorkQueue(limits, times, budget)
        self._times, self._lead_s = times, lead_s
        self._slots = [_Slot() for _ in range(slots)]

    def assign(self, now: float) -> tuple[list[tuple[int, Batch]], list[Work]]:
        """Batches to start or to hand ahead now, by slot, and the work dropped because its deadline cannot be met."""
        assigned: list[tuple[int, Batch]] = []
        dropped: list[Work] = []
        free = self._free(now)
        idle = sum(not self._slots[at].held for at in free)
        for at in free:
            slot = self._slots[at]
            # Background work is never handed ahead: whatever came meanwhile would wait for it.
            batch, gone = self.queue.form(now, merge=idle <= 1, background=not slot.held)
            dropped += gone
            if batch is None:
                break
            idle -= not slot.held
            if not slot.held:
                slot.started = now
            slot.held.append(_Held(batch, self._times.predicted_s(batch.group.graph, batch.flops)))
            assigned.append((at, batch))
        return assigned, dropped

    def finished(self, slot: int, batch: Batch, now: float) -> None:
        """`batch` has left `slot`; the next one it holds, if any, runs now."""
        held = self._slots[slot].held
        if held[0].batch is batch:
            held.popleft()
            self._slots[slot].started = now
        else:  # it never ran
            held.remove(next(h for h in held if h.batch is batch))

    def next_wake(self, now: float) -> float | None:
        """When to call `assign` again although nothing arrives or ends: a slot comes near its end while work waits."""
        if not len(self.queue):
            return None
        ends = [slot.started + slot.held[0].predicted_s - self._lead_s for slot in self._slots if len(slot.held) == 1]
        later = [end for end in ends if end > now]
        return min(later, default=None)

    def drain_s(self, now: float) -> float:
        """Predicted seconds until everything submitted so far has run, but waiting background work, which yields."""
        waiting = sum(self._times.backlog_s(graph, flops) for graph, flops in self.queue.foreground_flops.items())
        held = sum(slot.remaining_s(now) for slot in self._slots)
        return (held + waiting) / max(1, len(self._slots))

    def _free(self, now: float) -> list[int]:
        """Idle slots, then those whose only batch is about to end, soonest first."""
        idle = [at for at, slot in enumerate(self._slots) if not slot.held]
        ending = [at for at, slot in enumerate(self._slots) if len(slot.held) == 1 and slot.remaining_s(now) <= self._lead_s]
        return idle + sorted(ending, key=lambda at: self._slots[at].remaining_s(now))
