"""What a failing GPU costs: nobody an answer, and everybody knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from model.artifact import Artifact, ArtifactError
from model.records import feature_dtype, missing_records
from model.signature import PROBABILITIES, SCORE_CANDIDATES
from serving.core.ranker import Ranker
from serving.core.types import Rung
from serving.engines import open as engines
from serving.engines.backed import FAILURES, PAUSE_S, BackedEngine, BackedSession
from serving.engines.base import DeviceError
from serving.engines.tensorrt import open as tensorrt_open
from serving.store.open import open_store
from tests.serving.core.rank_fixtures import Recorder, by_candidate, request
from tests.serving.engines.tensorrt.conftest import OPTIONS, BuiltHere
from tests.serving.engines.tensorrt.stand_in import StandInRuntime

OUT_OF_MEMORY = "CUDA: cudaErrorMemoryAllocation: out of memory"
ILLEGAL = "CUDA: cudaErrorIllegalAddress: an illegal memory access was encountered"


class Scripted:
    """A session that fails as it is told."""

    fault = ""

    def __init__(self, answer: float) -> None:
        self.answer, self.failing, self.runs = answer, None, 0

    def prepare(self, graph: str, inputs: object) -> None:
        self.run(graph, inputs)

    def run(self, graph: str, inputs: object) -> dict[str, np.ndarray]:
        self.runs += 1
        if self.failing is not None:
            raise self.failing
        return {PROBABILITIES: np.full((1, 1), self.answer)}


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def scripted(clock: list[float]) -> tuple[Scripted, Scripted, BackedSession]:
    gpu, cpu = Scripted(1.0), Scripted(2.0)
    return gpu, cpu, BackedSession(gpu, lambda: cpu, lambda: clock[0])


def test_a_failed_batch_is_run_on_the_cpu_and_marked(scripted: tuple[Scripted, Scripted, BackedSession]) -> None:
    gpu, _, session = scripted
    assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 1.0
    gpu.failing = DeviceError(OUT_OF_MEMORY)
    assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 2.0
    assert session.fault == f"the GPU failed ({OUT_OF_MEMORY}); scored on the CPU"
    gpu.failing = None
    assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 1.0
    assert session.fault == ""


def test_a_device_that_keeps_failing_is_left_alone_for_a_while(
    scripted: tuple[Scripted, Scripted, BackedSession], clock: list[float]
) -> None:
    gpu, _, session = scripted
    gpu.failing = DeviceError(OUT_OF_MEMORY)
    for _ in range(FAILURES + 5):
        assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 2.0
    assert gpu.runs == FAILURES
    gpu.failing, clock[0] = None, PAUSE_S
    assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 1.0


def test_a_lost_device_is_not_asked_again(scripted: tuple[Scripted, Scripted, BackedSession], clock: list[float]) -> None:
    gpu, _, session = scripted
    gpu.failing = DeviceError(ILLEGAL, is_lost=True)
    session.prepare(SCORE_CANDIDATES, {})
    clock[0] = 1e9
    assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 2.0
    assert gpu.runs == 1


def test_errors_of_the_caller_are_not_the_devices(scripted: tuple[Scripted, Scripted, BackedSession]) -> None:
    gpu, cpu, session = scripted
    gpu.failing = ValueError("no such tensor")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="no such tensor"):
        session.run(SCORE_CANDIDATES, {})
    assert cpu.runs == 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> StandInRuntime:
    runtime = StandInRuntime()
    monkeypatch.setattr(tensorrt_open, "nvidia_runtime", lambda: runtime)
    return runtime


def opened(artifact: Artifact, built_here: BuiltHere, *, backup: bool = True) -> engines.Engine:
    options = {"precision": "f32", "threads_per_slot": 1, "slots": 1, "work": built_here.work, "backup": backup}
    return engines.open_engine(artifact, engine="tensorrt", cache=built_here.cache, **options)


def test_the_cpu_engine_behind_it_must_be_compiled(
    artifact: Artifact, built_here: BuiltHere, machine: StandInRuntime, engine_cache: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"run `kunlun compile .* --target openvino"):
        opened(artifact, built_here)
    engine = opened(artifact, built_here, backup=False)
    assert engine.name == "tensorrt"
    engine.close()


def test_the_cpu_engine_is_closed_when_that_of_the_gpu_cannot_be_opened(
    artifact: Artifact, built_here: BuiltHere, machine: StandInRuntime, engine_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = engines.open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: cpu)
    machine.libraries["tensorrt"] = "11.0.0"
    with pytest.raises(ArtifactError, match=r"expected .*11\.0\.0"):
        engines._open_tensorrt(artifact, built_here.work, cache=built_here.cache, precision="f32", slots=1, backup=True)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        cpu.open_session()


def test_a_rank_on_a_failing_gpu_is_answered_by_the_cpu_on_a_rung_of_its_own(
    artifact: Artifact, built_here: BuiltHere, machine: StandInRuntime, engine_cache: Path
) -> None:
    async def scenario() -> None:
        cpu = engines.open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
        engine = BackedEngine(opened(artifact, built_here, backup=False), cpu)
        store = await open_store("embedded", artifact.schema)
        await store.put_items(np.arange(1, 31), missing_records(feature_dtype(artifact.schema.item_features), 30))
        ranker = Ranker(artifact, engine, store, OPTIONS, Recorder())
        await ranker.start()
        try:
            sent = request(artifact.schema, "ann", np.arange(1, 31))
            before = await ranker.rank(sent)
            machine.gpus[0].fail(DeviceError(ILLEGAL, is_lost=True))
            after = await ranker.rank(request(artifact.schema, "ann", np.arange(1, 31)))
        finally:
            await ranker.close()
            await store.close()
        assert (before.rung, before.rung_reason) == (Rung.FULL, "")
        assert (after.rung, after.rung_reason) == (Rung.BACKUP_ENGINE, f"the GPU failed ({ILLEGAL}); scored on the CPU")
        np.testing.assert_allclose(by_candidate(after), by_candidate(before), atol=1e-5)

    asyncio.run(scenario())
