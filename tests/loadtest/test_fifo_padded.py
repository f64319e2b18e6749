"""The first-in-first-out baseline on a real engine: the same answers as the scheduler's, every shape warmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.baselines.fifo_padded import FifoPadded
from model.artifact import Artifact
from model.flops import FlopModel
from model.signature import REQUEST_INDEX
from serving.core.host_features import HostFeatures, Rows, ScoreInputs
from serving.core.options import CoreOptions
from serving.core.scheduler import Scheduler
from serving.engines.base import Engine, Session, Tensors
from serving.engines.open import open_engine
from serving.metrics.serving_metrics import ServingMetrics

MOST_REQUESTS, MOST_CANDIDATES = 4, 48
REQUESTS = 40
OPTIONS = CoreOptions(max_batch_candidates=64, max_batch_requests=4, max_batch_users=1)
Request = tuple[ScoreInputs, Rows, int]


class Watched:
    """The engine, with the padded shapes that its sessions scored, and calls that fail while `broken`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.entry, self.precision = engine.name, engine.entry, engine.precision
        self.device_peak_flops = engine.device_peak_flops
        self.shapes: list[tuple[int, int]] = []
        self.broken = False

    def open_session(self) -> Session:
        session, watched = self._engine.open_session(), self

        class WatchedSession:
            fault = ""

            def prepare(self, graph: str, inputs: Tensors) -> None:
                session.prepare(graph, inputs)

            def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
                if watched.broken:
                    raise RuntimeError("no device")
                states = [rows for name, rows in inputs.items() if name.startswith("context_")]
                watched.shapes.append((len(states[0]), len(inputs[REQUEST_INDEX])))
                return session.run(graph, inputs)

        return WatchedSession()

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module")
def engine(artifact: Artifact, engine_cache: Path) -> Engine:
    return open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)


@pytest.fixture(scope="module")
def host(artifact: Artifact) -> HostFeatures:
    return HostFeatures(artifact)


@asynccontextmanager
async def fifo(engine: Engine, host: HostFeatures) -> AsyncIterator[FifoPadded]:
    made = FifoPadded(engine, host, None, MOST_REQUESTS, MOST_CANDIDATES)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), timeout=30)

    asyncio.run(main())


def draw_requests(
    host: HostFeatures, rng: np.random.Generator, count: int = REQUESTS, most: int = MOST_CANDIDATES
) -> list[Request]:
    """Random states, contexts and items; candidate counts from one to `most`."""
    requests = []
    for candidates in rng.integers(1, most + 1, count).tolist():
        zeros = host.zeros(host.score_signature, {"R": 1, "C": candidates})
        drawn = {name: rng.standard_normal(rows.shape).astype(rows.dtype) for name, rows in zeros.items()}
        context = {name: rows for name, rows in drawn.items() if name.startswith("context_")}
        items = {name: rows for name, rows in drawn.items() if name.startswith("item_")}
        state = {name: drawn[name] for name in host.states}
        requests.append((ScoreInputs(context, items, 0), state, candidates))
    return requests


def test_scores_are_those_of_the_scheduler(
    engine: Engine, host: HostFeatures, artifact: Artifact, rng: np.random.Generator
) -> None:
    async def scenario() -> None:
        requests = draw_requests(host, rng)
        scheduler = Scheduler(
            engine, host, FlopModel.from_json(artifact.manifest.flops, artifact.config), OPTIONS, ServingMetrics()
        )
        await scheduler.start()
        now = asyncio.get_running_loop().time()
        jobs = [scheduler.score_job(*request, scheduler.urgency(now, now + 60, 0.01)) for request in requests]
        expected = await asyncio.gather(*(job.result for job in jobs))
        await scheduler.close()
        async with fifo(engine, host) as baseline:
            found = await asyncio.gather(*(baseline.score(*request) for request in requests))
        assert len(found) == REQUESTS
        for (_, _, candidates), theirs, ours in zip(requests, found, expected, strict=True):
            assert theirs.shape == ours.shape == (candidates, len(host.schema.tasks))
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
        assert np.ptp(np.concatenate(found)) > 1e-3, "the scores differ from candidate to candidate"

    play(scenario)


def test_batches_come_in_warmed_shapes_and_merge_requests(engine: Engine, host: HostFeatures, rng: np.random.Generator) -> None:
    async def scenario() -> None:
        watched = Watched(engine)
        async with fifo(watched, host) as baseline:
            warmed = set(watched.shapes)
            watched.shapes.clear()
            await asyncio.gather(*(baseline.score(*request) for request in draw_requests(host, rng, 100)))
        assert set(watched.shapes) <= warmed
        assert max(requests for requests, _ in watched.shapes) > 1
        assert len(watched.shapes) < 100

    play(scenario)


def test_requests_are_answered_in_the_order_of_their_arrival(
    engine: Engine, host: HostFeatures, rng: np.random.Generator
) -> None:
    async def scenario() -> None:
        answered: list[int] = []
        async with fifo(engine, host) as baseline:
            futures = [baseline.score(*request) for request in draw_requests(host, rng)]
            for number, future in enumerate(futures):
                future.add_done_callback(lambda _, number=number: answered.append(number))  # type: ignore[misc]
            await asyncio.gather(*futures)
            await asyncio.sleep(0)
        assert answered == list(range(REQUESTS))

    play(scenario)


def test_a_failing_engine_fails_every_request_even_beside_one_that_was_cancelled(
    engine: Engine, host: HostFeatures, rng: np.random.Generator
) -> None:
    async def scenario() -> None:
        watched = Watched(engine)
        requests = draw_requests(host, rng, 6, most=8)  # the first alone, the next four in one batch
        async with fifo(watched, host) as baseline:
            watched.broken = True
            futures = [baseline.score(*request) for request in requests]
            futures[0].cancel()
            futures[2].cancel()
            outcomes = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)
            kinds = [type(outcome) for outcome in outcomes]
            assert kinds == [asyncio.CancelledError, RuntimeError, asyncio.CancelledError, *[RuntimeError] * 3]
            watched.broken = False
            scores = await asyncio.wait_for(baseline.score(*requests[0]), 5)
            assert len(scores) == requests[0][2]

    play(scenario)


def test_more_candidates_than_any_bucket_holds_are_refused(
    engine: Engine, host: HostFeatures, rng: np.random.Generator
) -> None:
    async def scenario() -> None:
        [(inputs, state, candidates)] = draw_requests(host, rng, 1)
        async with fifo(engine, host) as baseline:
            with pytest.raises(ValueError, match=r"candidates: expected at most 48, found 49; raise most_candidates"):
                baseline.score(inputs, state, 49)
            assert len(await baseline.score(inputs, state, candidates)) == candidates

    play(scenario)
