"""Locust users that call in open loop: each is a source of calls at `--rate-per-user`, not a caller that waits.

A latency runs from the time for which the call was drawn. Calls go out once: what fails is counted as failed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gevent
import gevent.pool
import numpy as np
from locust import User, task
from locust.env import Environment

from kunlun.client import Client, KunlunError, Outcome
from loadtest.openloop.capacity import Capacity
from loadtest.swarm.arrivals import BLOCK_S, Arrival, arrivals, source_seed
from loadtest.swarm.measures import Measures
from loadtest.swarm.options import workload_of
from loadtest.swarm.population import CART_SHARE, Population
from loadtest.swarm.rows import GRPC, SEND_LAG, observe_stage
from model.data.synthetic import CART, CLICK

T = TypeVar("T")
THINK_S = 0.5
"""Mean time between a list and what its reader does with it."""

LEAST_S, CONNECT_S = 0.001, 30.0


class Worker:
    """What the Locust users of one process share: a client, the people, the measures, and the calls under way."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.measures = environment, Measures()
        self.options: Any = environment.parsed_options
        self.visits, self.number = gevent.pool.Group(), 0
        self.client: Client | None = None
        self.population: Population | None = None
        self.capacity: Capacity | None = None
        self.is_over = False

    def begin(self) -> None:
        """Connect, and introduce this worker's people if there is a world."""
        options, index = self.options, getattr(self.environment.runner, "worker_index", 0)
        self.is_over = False
        self.number, self.client = 0, Client(self.environment.host or "", timeout_s=options.call_timeout_ms / 1e3, retries=0)
        self.rng = np.random.default_rng((options.load_seed, index))
        self.client.health(timeout_s=CONNECT_S)  # connects, so that no call has to
        if options.world:
            prefix = f"swarm-{os.getpid()}-{time.time_ns()}"
            self.population = Population(Path(options.world), options.population, prefix, self.rng)
            with Client(self.environment.host or "", timeout_s=60) as patient:
                self.population.introduce(patient, options.history_mean)

    @property
    def patience_s(self) -> float:
        """For visits under way to end."""
        return float(3 * self.options.call_timeout_ms / 1e3 + 20 * THINK_S)

    def finish(self) -> None:
        """Begin no more visits, and wait for those under way."""
        self.is_over = True
        self.visits.join(timeout=self.patience_s)

    def end(self) -> None:
        """The same, and disconnect."""
        self.finish()
        if self.client is not None:
            self.client.close()

    def call(self, name: str, due: float, work: Callable[[Client, float], T]) -> T | None:
        """Make a call that was due at `due` (`time.monotonic`) and count it; None when it fails."""
        assert self.client is not None
        now = time.monotonic()
        left_s = max(LEAST_S, self.options.call_timeout_ms / 1e3 - (now - due))
        result, failure = None, None
        try:
            result = work(self.client, left_s)
        except KunlunError as error:
            failure = error
        ms = (time.monotonic() - due) * 1e3
        self.environment.events.request.fire(
            request_type=GRPC, name=name, response_time=ms, response_length=0, exception=failure, context={}
        )
        observe_stage(self.environment, SEND_LAG, (now - due) * 1e3)
        if name == "Rank":
            bound_ms = self.options.slo_p99_ms
            second = int(time.time() - (time.monotonic() - due))
            self.measures.due(second, missed=failure is not None or (bound_ms > 0 and ms > bound_ms))
        return result


class OpenLoopUser(User):
    """Starts a visit at every arrival, without waiting for the ones before."""

    abstract = True
    worker: ClassVar[Worker]

    def item_count(self) -> int:
        """Items that there are."""
        return int(self.worker.options.item_count)

    def on_start(self) -> None:
        """Draw the arrivals."""
        worker, self._began = self.worker, time.monotonic()
        worker.number += 1
        index = getattr(self.environment.runner, "worker_index", 0)
        seed = source_seed(worker.options.load_seed, index, worker.number)
        self._arrivals: Iterator[Arrival] = arrivals(
            lambda block: workload_of(worker.options, seed + block, BLOCK_S, items=self.item_count())
        )

    @task
    def next_arrival(self) -> None:
        """Wait for it, and start its visit."""
        arrival = next(self._arrivals)
        due = self._began + arrival.at
        if (wait_s := due - time.monotonic()) > 0:
            gevent.sleep(wait_s)
        if not self.worker.is_over:
            self.worker.visits.spawn(self.visit, arrival, due)

    def wait(self) -> None:
        """Not between tasks: the arrivals are the waiting."""

    def visit(self, arrival: Arrival, due: float) -> None:
        """What happens at an arrival: nothing, in this class."""

    def rank(self, due: float, user: str, items: list[str], context: dict[str, str], shown: int = 0) -> Any:
        """A Rank with its stages; None when it fails."""
        reply = self.worker.call(
            "Rank",
            due,
            lambda client, left_s: client.rank(
                user, items, context=dict(context), top_k=shown, include_timings=True, timeout_s=left_s
            ),
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
        if self.worker.population is None:
            raise ValueError(
                "world: expected the directory of a synthetic log for this user class, found none; give --world DIR"
            )
        return self.worker.population

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
        worker.call(
            "ReportOutcomes", time.monotonic(), lambda client, left_s: client.report_outcomes([outcome], timeout_s=left_s)
        )
        if clicked.any():
            now_ms, places = int(time.time() * 1e3), arrival.items[order[clicked]].tolist()
            events = [(arrival.user, CLICK, item, now_ms + n) for n, item in enumerate(places)]
            events += [(person, CART, item, at + 1) for person, _, item, at in events if rng.random() < CART_SHARE]
            worker.call(
                "RecordEvents", time.monotonic(), lambda client, left_s: people.record(client, events, timeout_s=left_s)
            )


class Passerby(PersonUser):
    """Puts something into the cart that was found elsewhere: an event without a list before it."""

    weight = 1

    def visit(self, arrival: Arrival, due: float) -> None:
        """One RecordEvents."""
        people = self.people
        event = (arrival.user, CART, people.any_item(), int(time.time() * 1e3))
        self.worker.call("RecordEvents", due, lambda client, left_s: people.record(client, [event], timeout_s=left_s))
