"""What the demo and the scoreboard measure on: a trained model with its log, and servers over them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loadtest.pipeline import Pipeline
from loadtest.processes import RunningServer, serving
from loadtest.prometheus_text import scrape, total
from loadtest.replay import Replay


@dataclass(frozen=True)
class Bench:
    """`requests`: how many a measurement sends."""

    pipeline: Pipeline
    requests: int

    def build(self) -> None:
        """Train, export and compile unless that was done before."""
        done = Path(self.pipeline.path("done"))
        if not done.exists():
            self.pipeline.workdir.mkdir(parents=True, exist_ok=True)
            self.pipeline.run()
            done.touch()

    @cached_property
    def replay(self) -> Replay:
        """The log."""
        return Replay(Path(self.pipeline.path("data")))

    @contextmanager
    def server(self) -> Iterator[RunningServer]:
        """A fresh server with an empty embedded store."""
        arguments = ["--repository", self.pipeline.models, "--store", "embedded", "--port", "0", "--metrics-port", "0"]
        with serving([*arguments, "--default-deadline-ms", "30000"], self.pipeline.workdir) as running:
            yield running

    def load(self, server: RunningServer, before: NDArray[np.int64] | None = None) -> None:
        """Fill the store; with `before`, histories as they were before those requests, else all events."""
        arguments = [self.pipeline.path("data"), "--store", server.store]
        if before is not None:
            earlier = self.pipeline.workdir / "events_before.parquet"
            pq.write_table(self.replay.events_before(before), earlier)
            arguments += ["--events", str(earlier)]
        self.pipeline.stage("load", "loading the store", *arguments)

    def wait_for_outcomes(self, server: RunningServer, impressions: int) -> None:
        """Until the server has counted `impressions` for every task."""
        deadline = time.monotonic() + 30
        expected = impressions * len(self.replay.log.schema.tasks)
        while total(scrape(f"http://{server.metrics}/metrics"), "kunlun_online_examples_total") < expected:
            if time.monotonic() > deadline:
                raise TimeoutError(f"online NE did not reach {expected} examples within 30 s")
            time.sleep(0.05)
