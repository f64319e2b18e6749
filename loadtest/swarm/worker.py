"""What the Locust users of one process share: a client, the people, the measures, and the calls under way."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gevent
import gevent.monkey
import gevent.pool
import gevent.threadpool
import numpy as np
from locust.env import Environment
from locust.runners import WorkerRunner

from kunlun.client import Client, KunlunError
from loadtest.openloop.capacity import Capacity
from loadtest.swarm.measures import Measures
from loadtest.swarm.options import workload_of
from loadtest.swarm.population import Population
from loadtest.swarm.rows import GRPC, SEND_LAG, observe_stage

T = TypeVar("T")
P = ParamSpec("P")
THINK_S = 0.5
"""Mean time between a list and what its reader does with it."""

MOST_AT_ONCE = 256
"""Calls of one process in flight. Each has a thread of the system's, where neither its send nor its reply waits for a greenlet;
further ones wait, which counts as lateness."""

LEAST_S, CONNECT_S, INTRODUCE_S = 0.001, 30.0, 60.0
_LOG = logging.getLogger(__name__)
_thread_sleep: Callable[[float], None] = gevent.monkey.get_original("time", "sleep")


class Worker:
    """One per process; at a master it only gathers.

    A *fault* is what no load explains: an option that cannot be, a server that is not there, an error in this code. It ends the
    run, and the run is not `ok`.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment, self.measures = environment, Measures()
        self.options: Any = environment.parsed_options
        self.visits, self.number = gevent.pool.Group(), 0
        self._idle: list[Client] = []
        self.population: Population | None = None
        self.capacity: Capacity | None = None
        self.is_over = False
        self._threads = gevent.threadpool.ThreadPool(MOST_AT_ONCE)

    def clear(self) -> None:
        """Forget the run before."""
        self.is_over, self.number, self.population = False, 0, None
        self.measures.clear()

    def begin(self) -> None:
        """Connect, and introduce this worker's people if there is a world."""
        try:
            self._begin()
        except Exception as error:  # an option, the server, the world: nothing can be sent without them
            self.fault(str(error))

    def _begin(self) -> None:
        options, host, index = self.options, self.environment.host or "", getattr(self.environment.runner, "worker_index", 0)
        workload_of(options, 0, 1.0, items=options.item_count)  # raises where options cannot be
        with self._client() as client:
            is_serving = self._threads.apply(client.health, kwds={"timeout_s": CONNECT_S})  # connects, so that no call has to
        if not is_serving:
            raise ValueError(f"host: expected a server that is serving, found none at {host!r}")
        self.rng = np.random.default_rng((options.load_seed, index))
        if options.world:
            prefix = f"swarm-{os.getpid()}-{time.time_ns()}"
            people = Population(Path(options.world), options.population, prefix, self.rng)
            with Client(host, timeout_s=INTRODUCE_S) as patient:
                self._threads.apply(people.introduce, (patient, options.history_mean))
            self.population = people

    def fault(self, text: str) -> None:
        """End the run, and say why."""
        self.measures.faults[text] += 1
        if self.measures.faults[text] == 1:
            _LOG.error("%s", text)
        self.end_run()

    def end_run(self) -> None:
        """Begin no more visits, and end the run at a master or in a single process; a worker's faults go to its master."""
        runner, was_over = self.environment.runner, self.is_over
        self.is_over = True
        if runner is not None and not isinstance(runner, WorkerRunner) and not was_over:
            gevent.spawn(runner.quit if self.options.headless else runner.stop)

    @property
    def patience_s(self) -> float:
        """For visits under way to end."""
        return float(3 * self.options.call_timeout_ms / 1e3 + 20 * THINK_S)

    def spawn(self, visit: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Begin a visit; what it raises is a fault."""
        begun = self.visits.spawn(visit, *arguments, **named)
        begun.link_exception(lambda ended: self.fault(f"a visit failed: {ended.exception!r}"))

    def finish(self) -> None:
        """Begin no more visits, and wait for those under way."""
        self.is_over = True
        self.visits.join(timeout=self.patience_s)

    def end(self) -> None:
        """The same, and disconnect."""
        self.finish()
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _client(self) -> Iterator[Client]:
        """One that no other call has: gevent's locks, which it gets in place of the system's, bear no second thread.

        (All share gRPC's connections.)
        """
        try:
            client = self._idle.pop()
        except IndexError:
            client = Client(self.environment.host or "", timeout_s=self.options.call_timeout_ms / 1e3, retries=0)
        try:
            yield client
        finally:
            self._idle.append(client)

    def call(self, name: str, work: Callable[[Client, float], T], due: float | None = None) -> T | None:
        """Make a call and count it; None when it fails. `due`: the time drawn for it (`time.monotonic`), if one was."""
        timeout_s, drawn = self.options.call_timeout_ms / 1e3, time.monotonic() if due is None else due

        def attempt() -> tuple[float, float, T | None, KunlunError | None]:
            if (early_s := drawn - time.monotonic()) > 0:
                _thread_sleep(early_s)
            sent = time.monotonic()
            try:
                with self._client() as client:
                    result, failure = work(client, max(LEAST_S, timeout_s - (sent - drawn))), None
            except KunlunError as error:
                result, failure = None, error
            return sent, time.monotonic(), result, failure

        outcome: tuple[float, float, T | None, KunlunError | None] = self._threads.apply(attempt)
        sent, ended, result, failure = outcome
        ms = (ended - drawn) * 1e3
        self.environment.events.request.fire(
            request_type=GRPC, name=name, response_time=ms, response_length=0, exception=failure, context={}
        )
        if due is not None:
            observe_stage(self.environment, SEND_LAG, (sent - due) * 1e3)
        if name == "Rank":
            bound_ms = self.options.slo_p99_ms
            second = int(time.time() - (time.monotonic() - drawn))
            self.measures.due(second, missed=failure is not None or (bound_ms > 0 and ms > bound_ms))
        return result
