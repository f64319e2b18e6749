"""Locust users that call in open loop: each is a source of calls at `--rate-per-user`, not a caller that waits.

A latency runs from the time for which the call was drawn. Calls go out once: what fails is counted as failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import gevent
import numpy as np
from locust import User, constant, task

from kunlun.client import Outcome
from loadtest.swarm.arrivals import Arrival, arrivals, block_seconds, source_seed
from loadtest.swarm.options import workload_of
from loadtest.swarm.population import CART_SHARE, Done, Population
from loadtest.swarm.rows import observe_stage
from loadtest.swarm.worker import THINK_S, Worker
from model.data.synthetic import CART, CLICK

IDLE_S = 0.1
AHEAD_S = 0.005
"""A visit begins so long before it is due: its thread waits for the rest, to better than gevent's timers."""


class OpenLoopUser(User):
    """Starts a visit at every arrival, without waiting for the ones before."""

    abstract = True
    worker: ClassVar[Worker]
    wait_time = constant(0)  # the arrivals are the waiting

    def item_count(self) -> int:
        """Items that there are."""
        return int(self.worker.options.item_count)

    def on_start(self) -> None:
        """Draw the arrivals."""
        worker, self._began = self.worker, time.monotonic()
        worker.number += 1
        options, index = worker.options, getattr(self.environment.runner, "worker_index", 0)
        seed = source_seed(options.load_seed, index, worker.number)
        self._arrivals: Iterator[Arrival] = arrivals(
            lambda block: workload_of(options, seed + block, block_seconds(options.rate_per_user), items=self.item_count())
        )

    @task
    def next_arrival(self) -> None:
        """Wait for it, and start its visit."""
        if self.worker.is_over:
            gevent.sleep(IDLE_S)
            return
        arrival = next(self._arrivals)
        due = self._began + arrival.at
        if (wait_s := due - time.monotonic() - AHEAD_S) > 0:
            gevent.sleep(wait_s)
        if not self.worker.is_over:
            self.worker.spawn(self.visit, arrival, due)

    def visit(self, arrival: Arrival, due: float) -> None:
        """What happens at an arrival: nothing, in this class."""

    def rank(self, due: float, user: str, items: list[str], context: dict[str, str], shown: int = 0) -> Any:
        """A Rank with its stages; None when it fails."""
        reply = self.worker.call(
            "Rank",
            lambda client, left_s: client.rank(
                user, items, context=dict(context), top_k=shown, include_timings=True, timeout_s=left_s
            ),
            due,
        )
        if reply is not None and reply.timings is not None:
            for stage, us in reply.timings.items():
                observe_stage(self.environment, stage.removesuffix("_us"), us / 1e3)
        return reply


class PersonUser(OpenLoopUser):
    """Somebody of the worker's population."""

    abstract = True

    @property
    def people(self) -> Population:
        """The worker's."""
        assert self.worker.population is not None
        return self.worker.population

    def on_start(self) -> None:
        """As ever, where there are people."""
        if self.worker.population is not None:
            super().on_start()
        elif not self.worker.is_over:
            self.worker.fault(
                f"world: expected the directory of a synthetic log for {type(self).__name__}, found none; give --world DIR"
            )

    def record(self, done: Sequence[Done], due: float | None = None) -> None:
        """RecordEvents of what people have done."""
        people, sent = self.people, self.people.events(done)
        if (
            self.worker.call("RecordEvents", lambda client, left_s: client.record_events(sent, timeout_s=left_s), due)
            is not None
        ):
            people.remember(done, sent)

    def item_count(self) -> int:
        """Items of the world."""
        return self.people.config.items


class Visitor(PersonUser):
    """Asks for a list, looks at its first items, clicks as the truth has it, and what it saw and did is reported."""

    weight = 4

    def visit(self, arrival: Arrival, due: float) -> None:
        """Rank, then ReportOutcomes and RecordEvents."""
        worker, people, rng = self.worker, self.people, self.worker.rng
        surface, shown = int(rng.integers(people.config.surfaces)), min(worker.options.shown, len(arrival.items))
        truth = people.probabilities(arrival.user, arrival.items, surface, shown)
        items = [f"i{i}" for i in arrival.items.tolist()]
        reply = self.rank(due, people.name(arrival.user), items, {"surface": f"surface-{surface}"}, shown)
        if reply is None:
            return
        order = np.asarray(reply.order)
        clicked = rng.random(len(order)) < truth[order]
        worker.measures.impressions(np.asarray(reply.scores[CLICK], np.float32), truth[order], clicked)
        gevent.sleep(rng.exponential(THINK_S))
        outcome = Outcome(reply.receipt, shown=range(len(order)), labels={CLICK: np.flatnonzero(clicked).tolist()})
        worker.call("ReportOutcomes", lambda client, left_s: client.report_outcomes([outcome], timeout_s=left_s))
        if clicked.any():
            now_ms, places = int(time.time() * 1e3), arrival.items[order[clicked]].tolist()
            events = [(arrival.user, CLICK, item, now_ms + n) for n, item in enumerate(places)]
            events += [(person, CART, item, at + 1) for person, _, item, at in events if rng.random() < CART_SHARE]
            self.record(events)


class Passerby(PersonUser):
    """Puts something into the cart that was found elsewhere: an event without a list before it."""

    weight = 1

    def visit(self, arrival: Arrival, due: float) -> None:
        """One RecordEvents."""
        self.record([(arrival.user, CART, self.people.any_item(), int(time.time() * 1e3))], due)
