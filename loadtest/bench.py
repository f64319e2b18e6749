"""What the demo and the scoreboard measure on: a trained model with its log, and servers over them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from loadtest.pipeline import CONFIGS, Pipeline
from loadtest.processes import RunningServer, serving
from loadtest.prometheus_text import REPORTED, scrape, total
from loadtest.replay import Replay
from model.artifact import open_artifact
from serving.config import ServerConfig, artifact_path
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets
from serving.engines.openvino_engine import resolve_precision

SMALL = ("--history-cap", "1024", "--items", "2000")


@dataclass(frozen=True)
class Bench:
    """What rows measure on, built when first asked for and kept. `requests`: how many a row of exactness sends;
    `soak_s`: length of the soak;
    `front_end`: of its servers.
    """

    pipeline: Pipeline
    requests: int
    soak_s: float = 600.0
    front_end: str = "grpcio"

    def build(self) -> None:
        """Train, export and compile unless that was done before."""
        if not Path(self.pipeline.path("done")).exists():
            self.run()

    def run(self) -> dict[str, dict[str, Any]]:
        """Train, export and compile; the figures of each stage."""
        self.pipeline.workdir.mkdir(parents=True, exist_ok=True)
        figures = self.pipeline.run()
        Path(self.pipeline.path("done")).touch()
        return figures

    @cached_property
    def small(self) -> Bench:
        """The `small` model on long histories, for the rows of performance."""
        config, workdir = CONFIGS / "bench_small.yaml", self.pipeline.workdir / "small"
        pipeline = Pipeline(workdir, config=config, synthetic=SMALL, precisions=precisions())
        return replace(self, pipeline=pipeline)

    @cached_property
    def replay(self) -> Replay:
        """The log."""
        self.build()
        return Replay(Path(self.pipeline.path("data")))

    @contextmanager
    def server(self, settings: Mapping[str, Any] | None = None, name: str = "") -> Iterator[RunningServer]:
        """A fresh server with an empty embedded store; `settings`: of its configuration, over the bench's own.

        `name` keeps several at a time apart.
        """
        self.build()
        workdir = self.pipeline.workdir / name
        workdir.mkdir(exist_ok=True)
        own: dict[str, Any] = {"repository": self.pipeline.models, "port": 0, "metrics_port": 0, "default_deadline_ms": 30_000}
        own["front_end"] = self.front_end
        config = workdir / "server.yaml"
        config.write_text(yaml.safe_dump(own | dict(settings or {})), encoding="utf-8")
        with serving(["--config", str(config)], workdir) as running:
            yield running

    def level_shares(self, users: NDArray[np.int64]) -> tuple[float, ...]:
        """Share of `users` (their numbers) at each history level, by the log's whole histories."""
        artifact = open_artifact(artifact_path(ServerConfig(repository=Path(self.pipeline.models))))
        shapes, counts = ShapeBuckets(artifact.schema, CoreOptions()), dict[str, dict[str, int]]()
        events = self.replay.events.select(["user_id", "type"]).to_pydict()
        for user, kind in zip(events["user_id"], events["type"], strict=True):
            own = counts.setdefault(user, {})
            own[kind] = own.get(kind, 0) + 1
        found = np.zeros(len(shapes.levels))
        for number in users.tolist():
            own = counts.get(f"u{number}", {})
            found[shapes.level({e.name: min(own.get(e.name, 0), e.cap) for e in artifact.schema.events})] += 1
        return tuple((found / found.sum()).tolist())

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
        while total(scrape(f"http://{server.metrics}/metrics"), "kunlun_online_examples_total", **REPORTED) < expected:
            if time.monotonic() > deadline:
                raise TimeoutError(f"online NE did not reach {expected} examples within 30 s")
            time.sleep(0.05)


def precisions() -> tuple[str, ...]:
    """What this CPU's engines can compute in."""
    return ("f32", "bf16") if resolve_precision("auto") == "bf16" else ("f32",)
