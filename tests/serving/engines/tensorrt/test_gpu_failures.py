"""What a failing GPU costs: nobody an answer, and everybody knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from model.artifact import Artifact, ArtifactError
from model.records import feature_dtype, missing_records
from model.signature import ENCODE_USER, PROBABILITIES, SCORE_CANDIDATES, encode_user_signature
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
from tests.serving.random_artifact import random_inputs

SHAPES = ((1, 16), (2, 64))
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


def test_a_lost_devices_shapes_are_prepared_on_the_cpu(scripted: tuple[Scripted, Scripted, BackedSession]) -> None:
    """Which runs everything from then on: there is nothing else to wait for."""
    gpu, cpu, session = scripted
    gpu.failing = DeviceError(ILLEGAL, is_lost=True)
    for _ in range(2):
        session.prepare(SCORE_CANDIDATES, {})
    assert (gpu.runs, cpu.runs) == (1, 2)


def test_what_cannot_be_prepared_is_no_batchs_failure(scripted: tuple[Scripted, Scripted, BackedSession]) -> None:
    gpu, cpu, session = scripted
    gpu.failing = DeviceError(OUT_OF_MEMORY)
    for _ in range(FAILURES):
        with pytest.raises(DeviceError, match="out of memory"):
            session.prepare(SCORE_CANDIDATES, {})
    assert cpu.runs == FAILURES, "the backup is ready before it is needed"
    gpu.failing = None
    assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 1.0
    assert session.fault == ""


def test_nothing_is_prepared_on_a_device_that_is_left_alone(
    scripted: tuple[Scripted, Scripted, BackedSession], clock: list[float]
) -> None:
    """And nobody is told that it was."""
    gpu, _, session = scripted
    gpu.failing = DeviceError(OUT_OF_MEMORY)
    for _ in range(FAILURES):
        session.run(SCORE_CANDIDATES, {})
    gpu.failing = None
    with pytest.raises(DeviceError, match=f"the GPU is left alone: {OUT_OF_MEMORY}"):
        session.prepare(SCORE_CANDIDATES, {})
    assert gpu.runs == FAILURES
    clock[0] = PAUSE_S
    session.prepare(SCORE_CANDIDATES, {})
    assert gpu.runs == FAILURES + 1


def test_a_device_lost_beside_a_batch_stays_lost_when_the_batch_fails(clock: list[float]) -> None:
    """The helper loses it while the slot's batch runs, which then fails for a smaller reason."""

    class Both(Scripted):
        def run(self, graph: str, inputs: object) -> dict[str, np.ndarray]:
            if not self.runs:
                self.failing = DeviceError(ILLEGAL, is_lost=True)
                self.runs = 1
                session.prepare(SCORE_CANDIDATES, {})
                raise DeviceError(OUT_OF_MEMORY)
            return super().run(graph, inputs)

    gpu, cpu = Both(1.0), Scripted(2.0)
    session = BackedSession(gpu, lambda: cpu, lambda: clock[0])
    session._failures = FAILURES - 1
    for _ in range(2):
        assert session.run(SCORE_CANDIDATES, {})[PROBABILITIES] == 2.0
        assert session.fault == f"the GPU failed ({ILLEGAL}); scored on the CPU"
        clock[0] = 1e9
    assert gpu.runs == 2


def test_a_batch_of_the_backup_has_nothing_to_compile(artifact: Artifact, engine_cache: Path, rng: np.random.Generator) -> None:
    """Its graphs are compiled once for all shapes, by whoever prepares the first."""
    plain = engines.open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
    backup = engines._open_openvino(artifact, engine_cache, "f32", 1, per_shape=False)
    one, other = plain.open_session(), backup.open_session()
    signature = encode_user_signature(artifact.schema, artifact.config)
    batches = [random_inputs(signature, {"U": users, "T_click": steps, "T_impression": 32}, rng) for users, steps in SHAPES]
    other.prepare(ENCODE_USER, batches[0])
    compiled = dict(other._compiled)  # type: ignore[attr-defined]
    for batch in batches:
        wanted, found = one.run(ENCODE_USER, batch), other.run(ENCODE_USER, batch)
        for name, state in wanted.items():
            np.testing.assert_allclose(found[name], state, rtol=1e-4, atol=1e-5)
    assert other._compiled == compiled  # type: ignore[attr-defined]
    plain.close()
    backup.close()


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
    monkeypatch.setattr(engines, "_open_openvino", lambda *_, **__: cpu)
    machine.libraries["tensorrt"] = "11.0.0"
    with pytest.raises(ArtifactError, match=r"expected .*11\.0\.0"):
        opened(artifact, built_here)
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
