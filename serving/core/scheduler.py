"""The scheduler: one owner of all waiting work, k engine slots, batches formed by work.

Called by the ranker on the event loop. The policy (order, merging, splitting, handing ahead) is the
pure `Dispatcher`; this module gives it a clock, futures and the slots' threads. Batches are stacked
here while the slots run what they have. Cancelled and expired work is dropped before it costs engine
time, last in the slot's own thread.

Cost per batch: one hop to the slot's thread and one back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.flops import FlopModel
from model.signature import ENCODE_USER, PROBABILITIES, SCORE_CANDIDATES
from serving.core.batching import Batch, Budget, Group, Limits, Piece, Work
from serving.core.dispatcher import Dispatcher
from serving.core.errors import DeadlineExpired, Overloaded
from serving.core.host_features import HostFeatures, Rows, ScoreInputs, stack_requests, stack_users
from serving.core.observer import Observer
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets
from serving.core.slots import EngineSlot
from serving.core.types import Priority
from serving.core.warm_up import WarmUp
from serving.core.work_time import WorkTime
from serving.engines.base import Engine, Session

EXPIRED = "deadline: passed while the request waited for an engine slot"
RELUCTANCE = 0.5
"""Share of its time budget after which a request is due, however large it is."""


@dataclass(frozen=True)
class Urgency:
    """When a request is worthless, and when it is due (which orders the queue). Seconds on `time.monotonic()`."""

    deadline: float
    due: float


@dataclass
class Reservation:
    """Engine seconds that a request will ask for."""

    seconds: float
    _give_back: Callable[[float], None]

    def release(self) -> None:
        """The work has been submitted, or will never be."""
        self._give_back(self.seconds)
        self.seconds = 0.0


@dataclass(eq=False)
class EncodeJob(Work):
    """One user to encode; the result is the state tensors [1, …]. `useful_flops`: work on real events."""

    inputs: Rows = field(default_factory=dict)
    useful_flops: float = 0.0
    result: asyncio.Future[Rows] = field(default_factory=asyncio.Future)
    queued: float = field(default_factory=time.monotonic)
    queue_s: float = 0.0
    run_s: float = 0.0


@dataclass(eq=False)
class ScoreJob(Work):
    """One request to score; the result is the probabilities [C, tasks]. `useful_per_row`: FLOPs on real events.

    `fault`: why the backup engine scored some of it; empty when it did not.
    """

    inputs: ScoreInputs | None = None
    state: Rows = field(default_factory=dict)
    useful_per_row: float = 0.0
    result: asyncio.Future[NDArray[np.float32]] = field(default_factory=asyncio.Future)
    probabilities: NDArray[np.float32] | None = None
    done_rows: int = 0
    fault: str = ""
    queued: float = field(default_factory=time.monotonic)
    queue_s: float = 0.0
    run_s: float = 0.0


Job = EncodeJob | ScoreJob


@dataclass(frozen=True)
class Stacked:
    """A batch as the engine takes it: padded tensors, their rows, and the FLOPs that will be executed."""

    inputs: Rows
    padded_rows: int
    executed_flops: float


@dataclass(frozen=True)
class Order:
    """What a slot is told to run."""

    slot: int
    batch: Batch
    stacked: Stacked


@dataclass(frozen=True)
class Outcome:
    """What a slot reports: pieces that ran, those that had expired by then, outputs and times."""

    ran: tuple[Piece, ...]
    dropped: tuple[Piece, ...]
    outputs: dict[str, NDArray[Any]]
    padded_rows: int
    executed_flops: float
    started: float
    seconds: float
    cpu_seconds: float = 0.0
    fault: str = ""


class Scheduler:
    """Runs encode and score jobs on the slots of one engine."""

    def __init__(self, engine: Engine, host: HostFeatures, flops: FlopModel, options: CoreOptions, observer: Observer) -> None:
        self._engine, self._host, self._flops, self._options, self._observer = engine, host, flops, options, observer
        self.shapes = ShapeBuckets(host.schema, options)
        self.times = WorkTime((ENCODE_USER, SCORE_CANDIDATES), engine.device_peak_flops)
        self._level_flops = [flops.encode(level, executed=True).total for level in self.shapes.levels]
        self._dispatcher = self._new_dispatcher(0)
        self._slots: list[EngineSlot[Order, Outcome]] = []
        self._warm_ups: list[WarmUp] = []
        self._timer: asyncio.TimerHandle | None = None
        self._reserved_s, self._reservations = 0.0, 0

    async def start(self) -> None:
        """Open every slot and warm its essential shapes; raises what the engine raised."""
        loop, cpus = asyncio.get_running_loop(), self._options.slot_cpus
        self._slots = [
            EngineSlot(self._engine, loop, self._run, self._done, i, cpus[i % len(cpus)] if cpus else None)
            for i in range(self._options.slots)
        ]
        self._warm_ups = [WarmUp(self.shapes, self._host, self._flops) for _ in self._slots]
        await asyncio.gather(*map(self._start_slot, self._slots, self._warm_ups))
        self._dispatcher = self._new_dispatcher(len(self._slots))

    @property
    def cold_shapes(self) -> int:
        """Shapes that no slot has run yet, of all slots; they are warmed while slots are idle."""
        return sum(warm_up.cold for warm_up in self._warm_ups)

    async def close(self) -> None:
        """Finish what the slots hold and end their threads."""
        if self._timer is not None:
            self._timer.cancel()
        for warm_up in self._warm_ups:
            warm_up.close()
        await asyncio.gather(*(slot.close() for slot in self._slots))

    def encode_s(self, level: int) -> float:
        """Predicted engine seconds of encoding one user at a history level."""
        return self.times.predicted_s(ENCODE_USER, self._level_flops[level])

    def score_s(self, candidates: int) -> float:
        """Predicted engine seconds of scoring one request."""
        return self.times.predicted_s(SCORE_CANDIDATES, self._flops.per_request + candidates * self._flops.per_candidate)

    def urgency(self, arrived: float, deadline: float, work_s: float, priority: Priority = Priority.NORMAL) -> Urgency:
        """Due times by stretch: a request waits in proportion to its own work, so small ones pass huge ones.

        High priority is due at once. Nobody starves: everything is due after half of its time budget at the
        latest, which is when low priority is.
        """
        longest = RELUCTANCE * (deadline - arrived)
        match priority:
            case Priority.HIGH:
                return Urgency(deadline, arrived)
            case Priority.LOW:
                return Urgency(deadline, arrived + longest)
        return Urgency(deadline, arrived + min(self._options.stretch * work_s, longest))

    def encode_job(
        self, inputs: Rows, level: int, useful_flops: float, urgency: Urgency, *, background: bool = False
    ) -> EncodeJob:
        """Submit the encode of one user."""
        job = EncodeJob(
            Group(ENCODE_USER, level),
            1,
            self._level_flops[level],
            0.0,
            urgency.deadline,
            urgency.due,
            background=background,
            inputs=inputs,
            useful_flops=useful_flops,
        )
        self._submit(job)
        return job

    def score_job(
        self, inputs: ScoreInputs, state: Rows, candidates: int, urgency: Urgency, useful_per_row: float | None = None
    ) -> ScoreJob:
        """Submit the scoring of one request; `useful_per_row`: FLOPs per candidate on real events (None: all are real)."""
        job = ScoreJob(
            Group(SCORE_CANDIDATES),
            candidates,
            self._flops.per_candidate,
            self._flops.per_request,
            urgency.deadline,
            urgency.due,
            inputs=inputs,
            state=state,
            useful_per_row=self._flops.per_candidate if useful_per_row is None else useful_per_row,
        )
        self._submit(job)
        return job

    def promote(self, job: Job, urgency: Urgency) -> None:
        """Make waiting work at least this urgent."""
        self._dispatcher.queue.promote(job, urgency.deadline, urgency.due)
        self._dispatch()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more."""
        # A task that awaited the result was cancelled through it: the result may be done, the job is not.
        self._dispatcher.queue.cancel(job, time.monotonic())
        job.result.cancel()
        self._observer.queue_depth(len(self._dispatcher.queue))

    def drain_s(self, own: Reservation | None = None) -> float:
        """Predicted seconds until everything submitted and reserved so far (but `own`) has run; background work yields."""
        reserved = self._reserved_s - (own.seconds if own is not None else 0.0)
        return self._dispatcher.drain_s(time.monotonic()) + max(0.0, reserved) / max(1, len(self._slots))

    @contextlib.contextmanager
    def reserved(self, seconds: float) -> Iterator[Reservation]:
        """Count work that a request will submit later (it reads or encodes first), until it is released."""
        self._reserved_s += seconds
        self._reservations += 1

        def release(held: float) -> None:
            self._reserved_s -= held

        reservation = Reservation(seconds, release)
        try:
            yield reservation
        finally:
            reservation.release()
            self._reservations -= 1
            if not self._reservations:
                self._reserved_s = 0.0  # sums of floats drift

    def admit(self, candidates: int, deadline: float, now: float, share: float = 1.0) -> None:
        """Refuse what cannot be answered within `share` of its time; raises `DeadlineExpired` or `Overloaded`."""
        flops = self._flops.per_request + candidates * self._flops.per_candidate
        if now + self.times.least_s(SCORE_CANDIDATES, flops) >= deadline:
            raise DeadlineExpired(
                f"deadline: {max(deadline - now, 0) * 1e3:.1f} ms left cannot suffice for {candidates} candidate(s)"
            )
        wait = self.drain_s()
        if wait > 0 and wait + self.score_s(candidates) > share * (deadline - now):
            raise overloaded(wait)

    async def _start_slot(self, slot: EngineSlot[Order, Outcome], warm_up: WarmUp) -> None:
        await slot.start(
            lambda session: warm_up.run_essential(session, self.times.observe), warm_up.run_next, warm_up.prepare_rest
        )

    def _new_dispatcher(self, slots: int) -> Dispatcher:
        options = self._options
        limits = {
            ENCODE_USER: Limits(options.max_batch_users, options.max_batch_users),
            SCORE_CANDIDATES: Limits(options.max_batch_candidates, options.max_batch_requests),
        }
        budget = Budget(options.work_budget_ms / 1e3, options.background_budget_ms / 1e3)
        return Dispatcher(slots, limits, self.times, budget, options.hand_ahead_ms / 1e3)

    def _submit(self, job: Job) -> None:
        self._dispatcher.queue.push(job)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give batches to the slots that can take one, and come back when the next one can."""
        now = time.monotonic()
        assigned, dropped = self._dispatcher.assign(now)
        for work in dropped:
            self._fail(work, DeadlineExpired(EXPIRED))
        for at, batch in assigned:
            try:
                stacked = self._stack(at, batch.group, batch.pieces)
            except Exception as error:  # bad inputs of one job must not stop the others
                asyncio.get_running_loop().call_soon(self._done, self._slots[at], Order(at, batch, Stacked({}, 0, 0.0)), error)
                continue
            self._slots[at].submit(Order(at, batch, stacked))
        self._observer.queue_depth(len(self._dispatcher.queue))
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake = self._dispatcher.next_wake(now)
        if wake is not None:
            self._timer = asyncio.get_running_loop().call_later(wake - now, self._dispatch)

    def _run(self, session: Session, order: Order) -> Outcome:
        """In the slot's thread: leave out what has gone stale, run."""
        now, batch, stacked = time.monotonic(), order.batch, order.stacked
        stale = tuple(p for p in batch.pieces if min(p.work.cancelled_at, p.work.deadline) <= now)
        pieces = batch.pieces
        if stale:
            pieces = tuple(p for p in pieces if p not in stale)
            if not pieces:
                return Outcome((), stale, {}, 0, 0.0, now, 0.0)
            stacked = self._stack(order.slot, batch.group, pieces)
        cpu, started = time.thread_time(), time.monotonic()
        outputs = session.run(batch.group.graph, stacked.inputs)
        seconds, cpu_seconds = time.monotonic() - started, time.thread_time() - cpu
        counted = (stacked.padded_rows, stacked.executed_flops, started, seconds, cpu_seconds)
        return Outcome(pieces, stale, outputs, *counted, session.fault)

    def _stack(self, slot: int, group: Group, pieces: tuple[Piece, ...]) -> Stacked:
        warm_up = self._warm_ups[slot]
        if group.graph == ENCODE_USER:
            encode = warm_up.encode_shape(group.level, len(pieces))
            rows = [_encode(p).inputs for p in pieces]
            return Stacked(stack_users(rows, encode.users), encode.users, warm_up.executed_flops(encode))
        shape = warm_up.score_shape(len(pieces), sum(p.stop - p.start for p in pieces))
        jobs = [_score(p) for p in pieces]
        inputs = [job.inputs for job in jobs if job.inputs is not None]
        items = [{k: v[p.start : p.stop] for k, v in i.items.items()} for p, i in zip(pieces, inputs, strict=True)]
        contexts = [i.context for i in inputs]
        stacked = stack_requests([j.state for j in jobs], contexts, items, shape.requests, shape.candidates)
        return Stacked(stacked, shape.candidates, warm_up.executed_flops(shape))

    def _done(self, slot: EngineSlot[Order, Outcome], order: Order, outcome: Outcome | Exception) -> None:
        """On the loop: refill the slot, hand results out."""
        self._dispatcher.finished(slot.index, order.batch, time.monotonic())
        if isinstance(outcome, Exception):
            for piece in order.batch.pieces:
                self._fail(piece.work, outcome)
        else:
            for piece in outcome.dropped:
                self._fail(piece.work, DeadlineExpired(EXPIRED))
            if outcome.ran:
                self.times.observe(order.batch.group.graph, sum(p.flops for p in outcome.ran), outcome.seconds)
        self._dispatch()
        if isinstance(outcome, Outcome) and outcome.ran:
            self._observe(order.batch, outcome)
            _deliver(outcome)

    def _fail(self, work: Work, error: Exception) -> None:
        assert isinstance(work, EncodeJob | ScoreJob)
        self._dispatcher.queue.cancel(work, time.monotonic())  # the rest of split work need not run
        if not work.result.done():
            work.result.set_exception(error)

    def _observe(self, batch: Batch, outcome: Outcome) -> None:
        rows = sum(p.stop - p.start for p in outcome.ran)
        self._observer.batch(
            batch.group.graph,
            rows,
            outcome.padded_rows,
            sum(map(_useful_flops, outcome.ran)),
            outcome.executed_flops,
            outcome.seconds,
            outcome.cpu_seconds,
            batch.reason.value,
        )
        # By the clock, not by what the code above meant to drop: what nobody could use any more when it started.
        late = [p for p in outcome.ran if min(p.work.cancelled_at, p.work.deadline) < outcome.started]
        if late:
            share = sum(p.flops for p in late) / sum(p.flops for p in outcome.ran)
            self._observer.wasted(batch.group.graph, share * outcome.seconds)


def overloaded(wait_s: float) -> Overloaded:
    """The refusal of what the queue delays past its deadline."""
    return Overloaded(f"the queue needs about {wait_s * 1e3:.0f} ms, more than the deadline leaves", wait_s)


def _deliver(outcome: Outcome) -> None:
    """Every piece's rows of the outputs to its job."""
    at = 0
    for piece in outcome.ran:
        count = piece.stop - piece.start
        job = piece.work
        assert isinstance(job, EncodeJob | ScoreJob)
        if piece.start == 0:
            job.queue_s = outcome.started - job.queued
        job.run_s += outcome.seconds
        if isinstance(job, EncodeJob):
            _resolve(job.result, {name: tensor[at : at + 1].copy() for name, tensor in outcome.outputs.items()})
        else:
            job.fault = job.fault or outcome.fault
            _collect(job, piece, outcome.outputs[PROBABILITIES][at : at + count])
        at += count


def _useful_flops(piece: Piece) -> float:
    """FLOPs on real events and candidates."""
    if isinstance(piece.work, EncodeJob):
        return piece.work.useful_flops
    job = _score(piece)
    return (piece.stop - piece.start) * job.useful_per_row + (job.flops_fixed if piece.start == 0 else 0.0)


def _encode(piece: Piece) -> EncodeJob:
    assert isinstance(piece.work, EncodeJob)
    return piece.work


def _score(piece: Piece) -> ScoreJob:
    assert isinstance(piece.work, ScoreJob)
    return piece.work


def _collect(job: ScoreJob, piece: Piece, probabilities: NDArray[np.float32]) -> None:
    """Add a piece's rows; the job is done when all have come, in whatever order."""
    if piece.start == 0 and piece.stop == job.rows:
        _resolve(job.result, probabilities.copy())
        return
    if job.probabilities is None:
        job.probabilities = np.empty((job.rows, probabilities.shape[1]), np.float32)
    job.probabilities[piece.start : piece.stop] = probabilities
    job.done_rows += len(probabilities)
    if job.done_rows == job.rows:
        _resolve(job.result, job.probabilities)


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)
