"""Open-loop calls through a balancer, one attempt each, while something happens to the replicas behind it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loadtest.openloop.generator import Sample
from loadtest.openloop.run import generate
from loadtest.openloop.workload import Workload

DEADLINE_MS = 30_000.0
"""Generous: what is asked here is whether a call is lost."""


BY_LOAD, BY_USER = SETS = "rankers", "rankers_by_user"
"""The two sets of replicas that a balancer keeps, one for each way of choosing, each with health checks of its own."""


class Balancer(Protocol):
    """What Envoy and HAProxy have in common here."""

    name: str
    address: str
    by_user: str

    def healthy(self, sets: Sequence[str] = SETS) -> set[str]:
        """Addresses of the replicas that get calls, in all of these sets."""
        ...

    def repeated(self) -> int:
        """Calls that it has sent once more so far."""
        ...

    def ejected(self) -> int:
        """How often it has put a replica aside for what became of its calls."""
        ...


@dataclass
class Traffic:
    """A run under way; `sample` is what became of it."""

    future: Future[Sample]
    process: Future[subprocess.Popen[str]]

    def stop(self) -> None:
        """No more calls; those in flight are waited for. Raises what has kept the generator from starting."""
        self.process.result().send_signal(signal.SIGTERM)

    @property
    def is_running(self) -> bool:
        return not self.future.done()

    @property
    def sample(self) -> Sample:
        """Waits for the end."""
        return self.future.result()


@dataclass(frozen=True)
class Source:
    """Makes runs: `base` is their workload; `messages` are requests in place of the workload's own."""

    base: Workload
    messages: Path | None = None

    @contextmanager
    def to(self, address: str, calls: int, rate: float, *, channels: int = 1) -> Iterator[Traffic]:
        """`calls` calls at `rate` per second, in the background; the block's end waits for theirs."""
        workload = self.base.model_copy(update={"rate": rate, "seconds": calls / rate, "deadline_ms": DEADLINE_MS})
        with ThreadPoolExecutor(1) as pool:
            process = Future[subprocess.Popen[str]]()

            def run() -> Sample:
                try:
                    return generate(address, workload, messages=self.messages, channels=channels, started=process.set_result)[1]
                except BaseException as error:
                    if not process.done():  # nobody waits for a process that was never started
                        process.set_exception(error)
                    raise

            traffic = Traffic(pool.submit(run), process)
            try:
                yield traffic
            except BaseException:
                traffic.stop()
                raise
