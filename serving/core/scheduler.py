"""The scheduler: one owner of all waiting work, k engine slots, batches formed by work.

Called by the ranker on the event loop. Never waits while a slot is idle; when every slot is busy it
hands one more batch ahead to a slot as soon as a full one is waiting, so that the slot does not idle
for a turn of the event loop. Cancelled and expired work is dropped before it costs engine time, last
in the slot's own thread.

Cost per batch: one hop to the slot's thread and one back.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.flops import FlopModel
from model.signature import ENCODE_USER, PROBABILITIES, SCORE_CANDIDATES
from serving.core.batching import Batch, Group, Limits, Piece, Reason, Work, WorkQueue
from serving.core.errors import DeadlineExpired, Overloaded
from serving.core.host_features import HostFeatures, Rows, ScoreInputs, stack_requests, stack_users
from serving.core.observer import Observer
from serving.core.options import CoreOptions
from serving.core.service_rate import ServiceRate
from serving.core.shapes import ShapeBuckets, round_up
from serving.core.slots import EngineSlot
from serving.engines.base import Engine, Session

AHEAD = 2
"""Batches a slot may hold: the one that runs and one more."""

EXPIRED = "deadline: passed while the request waited for an engine slot"


@dataclass(eq=False)
class EncodeJob(Work):
    """One user to encode; the result is the state tensors [1, …]."""

    inputs: Rows = field(default_factory=dict)
    result: asyncio.Future[Rows] = field(default_factory=asyncio.Future)
    queued: float = field(default_factory=time.monotonic)
    queue_s: float = 0.0
    run_s: float = 0.0


@dataclass(eq=False)
class ScoreJob(Work):
    """One request to score; the result is the probabilities [C, tasks]."""

    inputs: ScoreInputs | None = None
    state: Rows = field(default_factory=dict)
    result: asyncio.Future[NDArray[np.float32]] = field(default_factory=asyncio.Future)
    probabilities: NDArray[np.float32] | None = None
    done_rows: int = 0
    queued: float = field(default_factory=time.monotonic)
    queue_s: float = 0.0
    run_s: float = 0.0


Job = EncodeJob | ScoreJob


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


class Scheduler:
    """Runs encode and score jobs on the slots of one engine."""

    def __init__(self, engine: Engine, host: HostFeatures, flops: FlopModel, options: CoreOptions, observer: Observer) -> None:
        self._engine, self._host, self._flops, self._options, self._observer = engine, host, flops, options, observer
        self.shapes = ShapeBuckets(host.schema, options)
        # A warm-up beside a busy neighbour is slow; only the peak bounds what no queue could help.
        self.rate = ServiceRate(best=dict.fromkeys((ENCODE_USER, SCORE_CANDIDATES), 1.0 / engine.device_peak_flops))
        limits = {
            ENCODE_USER: Limits(options.max_batch_users, options.max_batch_users),
            SCORE_CANDIDATES: Limits(options.max_batch_candidates, options.max_batch_requests),
        }
        self._queue = WorkQueue(limits, float("inf"))
        self._running = dict.fromkeys(limits, 0.0)  # FLOPs of foreground work that the slots hold
        self._level_flops = [flops.encode(level, executed=True).total for level in self.shapes.levels]
        self._slots: list[EngineSlot[Batch, Outcome]] = []
        self._held: dict[EngineSlot[Batch, Outcome], int] = {}

    async def start(self) -> None:
        """Open and warm every slot; raises what the engine raised."""
        loop = asyncio.get_running_loop()
        self._slots = [EngineSlot(self._engine, loop, self._run, self._done, i) for i in range(self._options.slots)]
        await asyncio.gather(*(slot.start(self._warm) for slot in self._slots))
        self._held = dict.fromkeys(self._slots, 0)

    async def close(self) -> None:
        """Finish what the slots hold and end their threads."""
        await asyncio.gather(*(slot.close() for slot in self._slots))

    def encode_job(self, inputs: Rows, level: int, useful_flops: float, deadline: float, *, background: bool) -> EncodeJob:
        """Submit the encode of one user."""
        group = Group(ENCODE_USER, level)
        job = EncodeJob(group, 1, useful_flops, 0.0, deadline, background=background, inputs=inputs)
        self._submit(job)
        return job

    def score_job(self, inputs: ScoreInputs, state: Rows, candidates: int, deadline: float) -> ScoreJob:
        """Submit the scoring of one request."""
        per_row, fixed = self._flops.per_candidate, self._flops.per_request
        job = ScoreJob(Group(SCORE_CANDIDATES), candidates, per_row, fixed, deadline, inputs=inputs, state=state)
        self._submit(job)
        return job

    def promote(self, job: Job, deadline: float) -> None:
        """Make waiting work at least this urgent."""
        self._queue.promote(job, deadline)

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more."""
        # A task that awaited the result was cancelled through it: the result may be done, the job is not.
        self._queue.cancel(job)
        job.result.cancel()
        self._observer.queue_depth(len(self._queue))

    def drain_s(self) -> float:
        """Predicted seconds until everything submitted so far has run, but background work, which yields."""
        waiting = self._queue.foreground_flops
        total = sum(self.rate.predicted_s(graph, flops + waiting[graph]) for graph, flops in self._running.items())
        return total / max(1, len(self._slots))

    def admit(self, candidates: int, deadline: float, now: float) -> None:
        """Refuse what cannot be answered in time; raises `DeadlineExpired` or `Overloaded`."""
        flops = self._flops.per_request + candidates * self._flops.per_candidate
        if now + self.rate.least_s(SCORE_CANDIDATES, flops) >= deadline:
            raise DeadlineExpired(
                f"deadline: {max(deadline - now, 0) * 1e3:.1f} ms left cannot suffice for {candidates} candidate(s)"
            )
        wait = self.drain_s()
        if wait > 0 and now + wait + self.rate.predicted_s(SCORE_CANDIDATES, flops) > deadline:
            raise Overloaded(f"the queue needs about {wait * 1e3:.0f} ms, more than the deadline leaves", wait)

    def _submit(self, job: Job) -> None:
        self._queue.push(job)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give batches to idle slots, then full batches ahead to busy ones."""
        while (slot := self._free_slot()) is not None:
            self._queue.budget_flops = self.rate.flops_in(SCORE_CANDIDATES, self._options.work_budget_ms / 1e3)
            # Background work is never handed ahead: whatever came meanwhile would wait for it.
            batch, dropped = self._queue.form(time.monotonic(), background=self._held[slot] == 0)
            for work in dropped:
                self._fail(work, DeadlineExpired(EXPIRED))
            if batch is None:
                break
            self._held[slot] += 1
            self._running[batch.group.graph] += _foreground_flops(batch)
            slot.submit(batch)
        self._observer.queue_depth(len(self._queue))

    def _free_slot(self) -> EngineSlot[Batch, Outcome] | None:
        slot = min(self._held, key=self._held.__getitem__, default=None)
        if slot is None or self._held[slot] == 0:
            return slot
        return slot if self._held[slot] < AHEAD and len(self._queue) >= self._options.max_batch_requests else None

    def _run(self, session: Session, batch: Batch) -> Outcome:
        """In the slot's thread: leave out what has gone stale, stack, run."""
        now = time.monotonic()
        stale = tuple(p for p in batch.pieces if p.work.cancelled or p.work.deadline <= now)
        pieces = tuple(p for p in batch.pieces if p not in stale) if stale else batch.pieces
        if not pieces:
            return Outcome((), stale, {}, 0, 0.0, now, 0.0)
        inputs, padded, executed = self._stack(batch.group, pieces)
        started = time.monotonic()
        outputs = session.run(batch.group.graph, inputs)
        return Outcome(pieces, stale, outputs, padded, executed, started, time.monotonic() - started)

    def _stack(self, group: Group, pieces: tuple[Piece, ...]) -> tuple[Rows, int, float]:
        """Padded inputs of a batch, its padded rows, and the FLOPs the engine will execute."""
        if group.graph == ENCODE_USER:
            users = round_up(self.shapes.users, len(pieces))
            rows = [_encode(p).inputs for p in pieces]
            return stack_users(rows, users), users, users * self._level_flops[group.level]
        requests = round_up(self.shapes.requests, len(pieces))
        candidates = round_up(self.shapes.candidates, sum(p.stop - p.start for p in pieces))
        jobs = [_score(p) for p in pieces]
        inputs = [job.inputs for job in jobs if job.inputs is not None]
        items = [{k: v[p.start : p.stop] for k, v in i.items.items()} for p, i in zip(pieces, inputs, strict=True)]
        stacked = stack_requests([j.state for j in jobs], [i.context for i in inputs], items, requests, candidates)
        return stacked, candidates, self._flops.score(requests, candidates).total

    def _done(self, slot: EngineSlot[Batch, Outcome], batch: Batch, outcome: Outcome | Exception) -> None:
        """On the loop: hand results out, refill the slot."""
        self._held[slot] -= 1
        self._running[batch.group.graph] -= _foreground_flops(batch)
        if not any(self._held.values()):
            self._running = dict.fromkeys(self._running, 0.0)  # sums of floats drift
        if isinstance(outcome, Exception):
            for piece in batch.pieces:
                self._fail(piece.work, outcome)
        else:
            for piece in outcome.dropped:
                self._fail(piece.work, DeadlineExpired(EXPIRED))
            if outcome.ran:
                self._deliver(batch, outcome)
        self._dispatch()

    def _fail(self, work: Work, error: Exception) -> None:
        assert isinstance(work, EncodeJob | ScoreJob)
        self._queue.cancel(work)  # the rest of split work need not run
        if not work.result.done():
            work.result.set_exception(error)

    def _deliver(self, batch: Batch, outcome: Outcome) -> None:
        useful = sum(map(_flops_of, outcome.ran))
        graph = batch.group.graph
        self.rate.observe(graph, useful, outcome.seconds)
        rows = sum(p.stop - p.start for p in outcome.ran)
        self._observer.batch(
            graph, rows, outcome.padded_rows, useful, outcome.executed_flops, outcome.seconds, batch.reason.value
        )
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
                _collect(job, piece, outcome.outputs[PROBABILITIES][at : at + count])
            at += count

    def _warm(self, session: Session) -> None:
        """In the slot's thread: run every bucket once, so that its shapes are known, and seed the rate."""
        host, shapes = self._host, self.shapes
        sizes = [
            {"U": users} | {f"T_{event}": steps for event, steps in level.items()}
            for level in shapes.levels
            for users in shapes.users
        ]
        for size in sizes:
            inputs = host.zeros(host.encode_signature, size)
            session.run(ENCODE_USER, inputs)
        self._seed(session, ENCODE_USER, inputs, shapes.users[-1] * self._level_flops[-1])
        pairs = [(1, c) for c in shapes.candidates] + [(r, shapes.candidates[-1]) for r in shapes.requests]
        for requests, candidates in pairs:
            inputs = host.zeros(host.score_signature, {"R": requests, "C": candidates})
            session.run(SCORE_CANDIDATES, inputs)
        self._seed(session, SCORE_CANDIDATES, inputs, self._flops.score(requests, candidates).total)

    def _seed(self, session: Session, graph: str, inputs: Rows, flops: float) -> None:
        started = time.perf_counter()
        session.run(graph, inputs)
        self.rate.observe(graph, flops, time.perf_counter() - started)


def _flops_of(piece: Piece) -> float:
    """Useful FLOPs of a piece; the request's fixed part counts with its first rows."""
    return (piece.stop - piece.start) * piece.work.flops_per_row + (piece.work.flops_fixed if piece.start == 0 else 0.0)


def _foreground_flops(batch: Batch) -> float:
    """Useful FLOPs of a batch that somebody waits for."""
    return 0.0 if batch.reason is Reason.BACKGROUND else sum(map(_flops_of, batch.pieces))


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
