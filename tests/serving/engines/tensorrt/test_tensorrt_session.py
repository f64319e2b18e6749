"""The life of a session: what closing gives back, whatever has happened before, and what is left without CUDA graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model.artifact import Artifact
from model.signature import PROBABILITIES, SCORE_CANDIDATES, score_candidates_signature
from serving.core.options import CoreOptions
from serving.engines.backed import BackedEngine
from serving.engines.base import DeviceError
from serving.engines.cache import GRAPHS
from serving.engines.tensorrt.engine import model_form
from serving.engines.tensorrt.open import open_built
from serving.engines.tensorrt.session import TensorRtSession
from tests.serving.engines.tensorrt.conftest import BuiltHere, jagged_work
from tests.serving.engines.tensorrt.stand_in import StandInDevice, StandInExecution, StandInRuntime
from tests.serving.random_artifact import random_inputs

LIMIT_S = 60
LOST = DeviceError("CUDA: cudaErrorIllegalAddress: an illegal memory access was encountered", is_lost=True)
NO_CAPTURE = DeviceError("CUDA: cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


@pytest.fixture
def inputs(artifact: Artifact, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return random_inputs(score_candidates_signature(artifact.schema, artifact.config), {"R": 1, "C": 24}, rng)


def is_empty(gpu: StandInDevice) -> bool:
    return not (gpu.memory or gpu.pinned or gpu.streams or gpu.graphs)


class Closings:
    """An engine that counts how often it is closed."""

    name = precision = ""
    entry = None
    device_peak_flops = 1.0

    def __init__(self, error: Exception | None = None) -> None:
        self.closed, self.error = 0, error

    def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error


def test_a_bucket_that_is_opened_while_its_session_closes_leaves_nothing_behind(
    session: TensorRtSession, runtime: StandInRuntime, inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, opening, goes_on = session._programs[SCORE_CANDIDATES], threading.Event(), threading.Event()
    opened = program.open

    def blocking(profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> StandInExecution:
        opening.set()
        assert goes_on.wait(LIMIT_S)
        return opened(profile, shapes, stream)

    monkeypatch.setattr(program, "open", blocking)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(session.prepare, SCORE_CANDIDATES, inputs)
        assert opening.wait(LIMIT_S)
        second = threads.submit(session.run, SCORE_CANDIDATES, inputs)
        closing = threads.submit(session.close)
        goes_on.set()
        for call in (first, closing):
            call.result(LIMIT_S)
        assert second.exception(LIMIT_S) is None or "the session is closed" in str(second.exception())
    assert is_empty(runtime.gpus[0])
    session.close()
    for use in (session.run, session.prepare):
        with pytest.raises(RuntimeError, match="the session is closed"):
            use(SCORE_CANDIDATES, inputs)
    assert is_empty(runtime.gpus[0])


def test_what_a_failed_batch_has_left_on_the_stream_is_waited_for(
    session: TensorRtSession, runtime: StandInRuntime, inputs: dict[str, np.ndarray]
) -> None:
    runtime.gpus[0].fail(DeviceError("TensorRT could not run the network; its log says why"))
    with pytest.raises(DeviceError, match="could not run"):
        session.run(SCORE_CANDIDATES, inputs)
    session.close()
    assert is_empty(runtime.gpus[0])


def test_an_engine_on_a_lost_device_closes_all_the_same_and_says_so_once_a_session(
    artifact: Artifact,
    built_here: BuiltHere,
    inputs: dict[str, np.ndarray],
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = StandInRuntime(count=2)
    engine = open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=2)
    programs = [program for programs in engine._programs.values() for program in programs.values()]
    lost, well = (engine.open_session() for _ in range(2))
    for session in (lost, well):
        session.run(SCORE_CANDIDATES, inputs)
    runtime.gpus[0].fail(LOST)
    backup = Closings()
    BackedEngine(engine, backup).close()  # type: ignore[arg-type]
    assert backup.closed == 1
    assert is_empty(runtime.gpus[1]), "the other device's is given back"
    assert all(program.is_closed for program in programs)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"a session on Stand-in: 10 resource(s) could not be given back: {LOST}"]


def test_the_backup_is_closed_whatever_the_engine_does() -> None:
    engine, backup = Closings(ValueError("cannot")), Closings()
    with pytest.raises(ValueError, match="cannot"):
        BackedEngine(engine, backup).close()  # type: ignore[arg-type]
    assert (engine.closed, backup.closed) == (1, 1)


def test_a_session_that_cannot_be_opened_leaves_nothing_behind(artifact: Artifact, built_here: BuiltHere) -> None:
    runtime = StandInRuntime()
    engine = open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=1)
    runtime.gpus[0].total_bytes = 1024
    with pytest.raises(DeviceError, match="out of memory"):
        engine.open_session()
    assert is_empty(runtime.gpus[0])
    engine.close()


def test_where_nothing_can_be_captured_batches_run_without_graphs(
    session: TensorRtSession,
    artifact: Artifact,
    runtime: StandInRuntime,
    inputs: dict[str, np.ndarray],
    rng: np.random.Generator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpu, signature = runtime.gpus[0], score_candidates_signature(artifact.schema, artifact.config)
    wanted = session.run(SCORE_CANDIDATES, inputs)[PROBABILITIES]
    other = random_inputs(signature, {"R": 1, "C": 40}, rng)
    gpu.capture_error = NO_CAPTURE
    for _ in range(2):
        assert np.isfinite(session.run(SCORE_CANDIDATES, other)[PROBABILITIES]).all()
        session.run(SCORE_CANDIDATES, random_inputs(signature, {"R": 1, "C": 80}, rng))
    assert (gpu.captures, gpu.launches, gpu.enqueues) == (1, 1, 1 + 2 * 3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "said once"
    assert str(NO_CAPTURE) in caplog.text
    np.testing.assert_array_equal(session.run(SCORE_CANDIDATES, inputs)[PROBABILITIES], wanted)


def test_a_device_that_is_lost_in_a_capture_is_lost(
    session: TensorRtSession, runtime: StandInRuntime, inputs: dict[str, np.ndarray]
) -> None:
    runtime.gpus[0].capture_error = LOST
    with pytest.raises(DeviceError, match="illegal memory access"):
        session.run(SCORE_CANDIDATES, inputs)


def test_every_bucket_of_large_options_keeps_its_graph(artifact: Artifact, built_here: BuiltHere) -> None:
    """There are more than 256 with 64 requests a batch, which once was a session's limit."""
    work = jagged_work(artifact, CoreOptions(max_batch_requests=64))
    assert sum(len(work.of(graph).buckets) for graph in GRAPHS) > 256
    form, runtime = model_form(artifact, work), StandInRuntime()
    gpu, opened = runtime.gpus[0], list[Mapping[str, tuple[int, ...]]]()

    class Boundless:
        """A program of any shape that computes nothing."""

        weight_bytes = 0

        def scratch_bytes(self, profile: int) -> int:
            return 1

        def open(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> Boundless:
            opened.append(shapes)
            return self

        def bind(self, addresses: Mapping[str, int], scratch: int) -> None: ...

        def enqueue(self, stream: int) -> None: ...

        def close(self) -> None: ...

    session = TensorRtSession(gpu, dict.fromkeys(GRAPHS, Boundless()), form)
    buckets = [(graph, bucket) for graph in GRAPHS for bucket in work.of(graph).buckets]
    for _ in range(2):
        for graph, bucket in buckets:
            session._make(graph, bucket)
    assert len(opened) == gpu.captures == len(gpu.graphs) == len(buckets)
    session.close()
    assert is_empty(gpu)
