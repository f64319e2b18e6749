"""The slots' policy, on a fake clock with a fake engine: nothing is lost, doubled or starved."""

from __future__ import annotations

import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.batching import Batch, Budget, Group, Limits, Reason, Work
from serving.core.dispatcher import Dispatcher
from serving.core.work_time import WorkTime

GRAPH = "score_candidates"
LIMITS = {GRAPH: Limits(rows=64, pieces=8)}
FIXED_S, ROW_S = 0.001, 0.0005


def work_times() -> WorkTime:
    times = WorkTime([GRAPH])
    for rows in (1, 100):
        times.observe(GRAPH, rows, FIXED_S + rows * ROW_S)
    return times


def dispatcher(slots: int = 1, lead_s: float = 0.001) -> Dispatcher:
    return Dispatcher(slots, LIMITS, work_times(), Budget(0.02, 0.005), lead_s)


def work(rows: int, due: float = 1.0, deadline: float = 100.0, *, background: bool = False) -> Work:
    return Work(Group(GRAPH), rows, 1.0, 0.0, deadline, due, background=background)


class Simulation:
    """A fake clock and slots whose calls take what the model says, times `noise` in turn."""

    def __init__(self, dispatcher: Dispatcher, noise: list[float]) -> None:
        self.dispatcher, self._noise = dispatcher, itertools.cycle(noise)
        self.ran: dict[int, list[int]] = {}
        self.dropped: list[Work] = []
        self.batches: list[tuple[float, Batch]] = []
        self._running: dict[int, list[Batch]] = {}
        self._events: list[tuple[float, int, str, object]] = []
        self._number = itertools.count()
        self.now = 0.0

    def at(self, time: float, what: str, subject: object) -> None:
        heapq.heappush(self._events, (time, next(self._number), what, subject))

    def run(self) -> None:
        while self._events:
            self.now, _, what, subject = heapq.heappop(self._events)
            if what == "arrive":
                self.dispatcher.queue.push(subject)  # type: ignore[arg-type]
            elif what == "cancel":
                self.dispatcher.queue.cancel(subject, self.now)  # type: ignore[arg-type]
            elif what == "end":
                self._end(int(subject))  # type: ignore[call-overload]
            self._assign()

    def _assign(self) -> None:
        assigned, dropped = self.dispatcher.assign(self.now)
        self.dropped += dropped
        for slot, batch in assigned:
            held = self._running.setdefault(slot, [])
            held.append(batch)
            assert len(held) <= 2
            if len(held) == 1:
                self._start(slot)
        if (wake := self.dispatcher.next_wake(self.now)) is not None:
            assert wake > self.now
            self.at(wake, "wake", None)

    def _start(self, slot: int) -> None:
        batch = self._running[slot][0]
        self.batches.append((self.now, batch))
        self.at(self.now + (FIXED_S + batch.rows * ROW_S) * next(self._noise), "end", slot)

    def _end(self, slot: int) -> None:
        batch = self._running[slot].pop(0)
        self.dispatcher.finished(slot, batch, self.now)
        for piece in batch.pieces:
            self.ran.setdefault(id(piece.work), []).extend(range(piece.start, piece.stop))
        if self._running[slot]:
            self._start(slot)


arrivals = st.lists(
    st.tuples(
        st.floats(0, 0.2),  # arrives
        st.integers(1, 150),  # rows
        st.floats(0.001, 0.5),  # time budget
        st.booleans(),  # background
        st.one_of(st.none(), st.floats(0, 0.3)),  # cancelled this long after
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(arrivals, st.integers(1, 3), st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=5))
def test_every_request_runs_once_or_is_dropped_or_was_cancelled(drawn: list, slots: int, noise: list[float]) -> None:
    simulation = Simulation(dispatcher(slots), noise)
    jobs = []
    for arrives, rows, budget, background, cancelled in drawn:
        job = work(rows, arrives + budget / 2, arrives + budget, background=background)
        jobs.append((job, cancelled))
        simulation.at(arrives, "arrive", job)
        if cancelled is not None:
            simulation.at(arrives + cancelled, "cancel", job)
    simulation.run()
    for job, cancelled in jobs:
        rows = sorted(simulation.ran.get(id(job), []))
        assert rows == list(range(len(rows))), "rows run in order, none twice"
        if len(rows) < job.rows:
            assert cancelled is not None or any(job is d for d in simulation.dropped)
    for started, batch in simulation.batches:
        for piece in batch.pieces:
            assert piece.start == 0 or started >= 0
    assert (len(simulation.dispatcher.queue), simulation.dispatcher.drain_s(1e9)) == (0, 0.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_results_do_not_depend_on_the_order_of_simultaneous_arrivals(sizes: list[int], random: object) -> None:
    """Whoever comes first among equals, each job gets all of its rows, and the slot is busy equally long."""
    totals = set()
    for _ in range(2):
        simulation = Simulation(dispatcher(), [1.0])
        jobs = [work(rows, due=0.01 * rows) for rows in sizes]
        for job in random.sample(jobs, len(jobs)):  # type: ignore[attr-defined]
            simulation.at(0.0, "arrive", job)
        simulation.run()
        assert all(simulation.ran[id(job)] == list(range(job.rows)) for job in jobs)
        totals.add(round(sum(batch.rows for _, batch in simulation.batches), 9))
    assert len(totals) == 1


def test_an_idle_slot_gets_work_at_once_and_a_busy_one_just_before_its_end() -> None:
    made = dispatcher(lead_s=0.001)
    made.queue.push(work(20))
    assert [at for at, _ in made.assign(0.0)[0]] == [0]
    made.queue.push(work(8))
    assert made.assign(0.001) == ([], []), "10 ms to go: who comes meanwhile may be more urgent"
    wake = made.next_wake(0.001)
    assert wake == pytest.approx(0.010)
    made.queue.push(urgent := work(4, due=0.5))
    [(slot, batch)], _ = made.assign(0.0101)
    assert (slot, batch.pieces[0].work) == (0, urgent)
    assert made.next_wake(0.0101) is None, "the slot holds two batches"


def test_two_idle_slots_share_two_requests_instead_of_merging_them() -> None:
    made = dispatcher(slots=2)
    for _ in range(2):
        made.queue.push(work(2))
    assert [(at, b.rows) for at, b in made.assign(0.0)[0]] == [(0, 2), (1, 2)]


def test_background_work_is_never_handed_ahead() -> None:
    made = dispatcher()
    made.queue.push(work(2))
    made.assign(0.0)
    made.queue.push(work(2, background=True))
    assert made.assign(0.0015) == ([], [])
    batch = made._slots[0].held[0].batch
    made.finished(0, batch, 0.002)
    [(_, batch)], _ = made.assign(0.002)
    assert batch.reason is Reason.BACKGROUND


def test_drain_counts_what_runs_and_what_waits() -> None:
    made = dispatcher()
    made.queue.push(work(20))
    made.assign(0.0)
    running = FIXED_S + 20 * ROW_S
    assert made.drain_s(0.0) == pytest.approx(running)
    assert made.drain_s(0.004) == pytest.approx(running - 0.004)
    made.queue.push(work(20))
    assert made.drain_s(0.0) > running + 20 * ROW_S
    assert made.drain_s(10.0) == pytest.approx(made.drain_s(0.0) - running), "a late batch may end any moment"


def test_a_batch_that_could_not_be_stacked_leaves_the_running_one_alone() -> None:
    made = dispatcher(lead_s=1.0)
    made.queue.push(work(20))
    [(_, running)], _ = made.assign(0.0)
    made.queue.push(work(20))
    [(_, ahead)], _ = made.assign(0.0)
    made.finished(0, ahead, 0.001)
    assert [h.batch for h in made._slots[0].held] == [running]
    made.finished(0, running, 0.01)
    assert made.drain_s(0.01) == 0.0
