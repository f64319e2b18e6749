"""The engine against a strict stand-in of GPU and TensorRT: right numbers, right buckets, bounded memory, clean ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import save_file

from model.artifact import Artifact, ArtifactError, file_digests, open_artifact
from model.signature import (
    ENCODE_USER,
    LOGITS,
    PROBABILITIES,
    SCORE_CANDIDATES,
    encode_user_signature,
    score_candidates_signature,
)
from serving.engines.base import DeviceError
from serving.engines.cache import GRAPHS
from serving.engines.open import open_engine
from serving.engines.parity import check_parity
from serving.engines.tensorrt.build import build
from serving.engines.tensorrt.engine import RESERVED_SHARE, TensorRtEngine, model_form
from serving.engines.tensorrt.open import open_built
from serving.engines.tensorrt.pieces import PiecewiseSession
from serving.engines.tensorrt.session import TensorRtSession
from serving.engines.tensorrt.work import OutsideWork
from tests.serving.engines.tensorrt.conftest import OPTIONS, BuiltHere, jagged_work
from tests.serving.engines.tensorrt.stand_in import RuleBroken, StandInRuntime
from tests.serving.random_artifact import random_inputs


def encode_inputs(artifact: Artifact, users: int, rng: np.random.Generator, clicks: int = 64) -> dict[str, np.ndarray]:
    signature = encode_user_signature(artifact.schema, artifact.config)
    return random_inputs(signature, {"U": users, "T_click": clicks, "T_impression": 32}, rng)


def score_inputs(artifact: Artifact, requests: int, candidates: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return random_inputs(score_candidates_signature(artifact.schema, artifact.config), {"R": requests, "C": candidates}, rng)


def test_the_golden_batch_comes_out_as_the_twin_computed_it(
    session: TensorRtSession, artifact: Artifact, built_here: BuiltHere
) -> None:
    """Which has more users and requests than fit: it is run in pieces."""
    assert check_parity(PiecewiseSession(session, model_form(artifact, built_here.work)), "f32", artifact).passed


def test_batches_of_every_size_agree_with_the_openvino_engine(
    session: TensorRtSession, artifact: Artifact, engine_cache: object, rng: np.random.Generator
) -> None:
    """In any order, so that what an earlier batch has left behind would show."""
    other = open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)  # type: ignore[arg-type]
    reference = other.open_session()
    for users, clicks in ((3, 64), (1, 9), (4, 17), (2, 64)):
        inputs = encode_inputs(artifact, users, rng, clicks)
        found, wanted = (s.run(ENCODE_USER, inputs) for s in (session, reference))
        for name, state in wanted.items():
            np.testing.assert_allclose(found[name], state, rtol=1e-4, atol=1e-5)
    for requests, candidates in ((1, 90), (4, 30), (2, 24), (1, 1)):
        inputs = score_inputs(artifact, requests, candidates, rng)
        found, wanted = (s.run(SCORE_CANDIDATES, inputs) for s in (session, reference))
        np.testing.assert_allclose(found[PROBABILITIES], wanted[PROBABILITIES], rtol=1e-4, atol=1e-6)
    other.close()


def test_outputs_stay_as_they_are_when_the_next_batch_runs(
    session: TensorRtSession, artifact: Artifact, rng: np.random.Generator
) -> None:
    first = session.run(SCORE_CANDIDATES, score_inputs(artifact, 1, 24, rng))[PROBABILITIES]
    kept = first.copy()
    session.run(SCORE_CANDIDATES, score_inputs(artifact, 1, 24, rng))
    np.testing.assert_array_equal(first, kept)


def test_a_bucket_is_chosen_by_rows_and_not_by_the_longest_history(artifact: Artifact, built_here: BuiltHere) -> None:
    work = built_here.work.encode_user
    assert built_here.work.is_jagged
    assert work.fit({"U": 3, "N_click": 40, "N_impression": 10}) == {"U": 4, "N_click": 64, "N_impression": 32}
    assert work.fit({"U": 3, "N_click": 40, "N_impression": 128}) == {"U": 4, "N_click": 256, "N_impression": 128}


def test_every_bucket_lies_in_a_profile_and_every_profile_is_used(built_here: BuiltHere) -> None:
    for graph in GRAPHS:
        work = built_here.work.of(graph)
        assert {work.profile(bucket) for bucket in work.buckets} == set(range(len(work.profiles)))


def test_one_graph_per_bucket_is_captured_and_then_launched(
    session: TensorRtSession, artifact: Artifact, runtime: StandInRuntime, rng: np.random.Generator
) -> None:
    gpu = runtime.gpus[0]
    for candidates in (24, 20, 22, 24):
        session.run(SCORE_CANDIDATES, score_inputs(artifact, 1, candidates, rng))
    assert (gpu.captures, gpu.launches, gpu.enqueues) == (1, 4, 1)


def test_a_prepared_bucket_costs_its_first_batch_nothing(
    session: TensorRtSession, artifact: Artifact, runtime: StandInRuntime, rng: np.random.Generator
) -> None:
    inputs = encode_inputs(artifact, 2, rng)
    session.prepare(ENCODE_USER, inputs)
    before = runtime.gpus[0].enqueues
    session.run(ENCODE_USER, inputs)
    assert runtime.gpus[0].enqueues == before


def test_preparing_beside_a_running_session_changes_no_number(
    session: TensorRtSession, artifact: Artifact, rng: np.random.Generator
) -> None:
    inputs = score_inputs(artifact, 1, 30, rng)
    wanted = session.run(SCORE_CANDIDATES, inputs)[PROBABILITIES]
    others = [score_inputs(artifact, requests, 4 * requests, rng) for requests in (1, 2, 3, 4)]
    with ThreadPoolExecutor(1) as helper:
        preparing = helper.submit(lambda: [session.prepare(SCORE_CANDIDATES, other) for other in others])
        for _ in range(20):
            np.testing.assert_array_equal(session.run(SCORE_CANDIDATES, inputs)[PROBABILITIES], wanted)
        preparing.result(timeout=60)


def test_without_cuda_graphs_the_numbers_are_the_same(
    artifact: Artifact, built_here: BuiltHere, runtime: StandInRuntime, rng: np.random.Generator
) -> None:
    engine = TensorRtEngine(
        *(built_here.built.path, runtime, model_form(artifact, built_here.work)),
        **{"precision": "f32", "device_peak_flops": 1.0, "slots": 2},
    )
    plain = TensorRtEngine(
        *(built_here.built.path, runtime, model_form(artifact, built_here.work)),
        **{"precision": "f32", "device_peak_flops": 1.0, "slots": 1, "uses_graphs": False},
    )
    inputs = score_inputs(artifact, 2, 50, rng)
    runs = [e.open_session().run(SCORE_CANDIDATES, inputs)[PROBABILITIES] for e in (engine, plain)]
    np.testing.assert_array_equal(*runs)
    assert runtime.gpus[0].launches == 1
    engine.close()
    plain.close()


def test_too_large_a_batch_is_refused_with_the_largest_there_is(
    session: TensorRtSession, artifact: Artifact, rng: np.random.Generator
) -> None:
    with pytest.raises(OutsideWork, match=r"expected at most \{'R': 4, 'C': 96\}, found \{'R': 1, 'C': 97\}; compile"):
        session.run(SCORE_CANDIDATES, score_inputs(artifact, 1, 97, rng))


def test_memory_is_allocated_once_and_given_back(
    artifact: Artifact, built_here: BuiltHere, runtime: StandInRuntime, rng: np.random.Generator
) -> None:
    engine = open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=2)
    gpu, sessions = runtime.gpus[0], [engine.open_session() for _ in range(2)]
    before = gpu.peak_bytes
    promised = engine.memory(gpu, 2)
    assert before <= promised.total - promised.weights
    for session in sessions:
        for candidates in range(24, 97, 8):
            session.run(SCORE_CANDIDATES, score_inputs(artifact, 1, candidates, rng))
        session.run(ENCODE_USER, encode_inputs(artifact, 4, rng))
    assert gpu.peak_bytes == before
    engine.close()
    assert (gpu.memory, gpu.pinned, gpu.streams, gpu.graphs) == ({}, {}, {}, {})


def plan_bytes(built_here: BuiltHere) -> int:
    return sum((built_here.built.path / f"{graph}.plan").stat().st_size for graph in GRAPHS)  # type: ignore[operator]


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(artifact: Artifact, built_here: BuiltHere) -> None:
    runtime = StandInRuntime(total_bytes=plan_bytes(built_here))
    with pytest.raises(ArtifactError, match=r"device memory: expected at most .* of weights; serve with fewer slots"):
        open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=1)
    assert (runtime.loaded, runtime.gpus[0].peak_bytes) == ([], 0)


def test_sessions_that_do_not_fit_beside_what_others_hold_are_refused_before_they_are_opened(
    artifact: Artifact, built_here: BuiltHere
) -> None:
    runtime = StandInRuntime(total_bytes=16 << 20)
    gpu = runtime.gpus[0]
    gpu.allocate(int(gpu.total_bytes * (1 - RESERVED_SHARE)) - plan_bytes(built_here) - 1024)
    before = gpu.peak_bytes
    with pytest.raises(ArtifactError, match=r"of its 16 MiB, found .* MiB of staging and scratch of 2 session\(s\);"):
        open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=2)
    assert (runtime.loaded, gpu.weights, gpu.peak_bytes) == (list(GRAPHS), 0, before)


def test_sessions_are_dealt_out_to_gpus_in_turn(artifact: Artifact, built_here: BuiltHere, rng: np.random.Generator) -> None:
    runtime = StandInRuntime(count=2)
    engine = open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=4)
    sessions = [engine.open_session() for _ in range(4)]
    assert [session.device.index for session in sessions] == [0, 1, 0, 1]
    assert engine.device_peak_flops == pytest.approx(built_here.built.device_peak_flops / 2)
    inputs = score_inputs(artifact, 1, 30, rng)
    runs = [session.run(SCORE_CANDIDATES, inputs)[PROBABILITIES] for session in sessions]
    assert all((run == runs[0]).all() for run in runs)
    engine.close()


def test_a_device_error_reaches_the_caller_and_the_session_recovers(
    session: TensorRtSession, artifact: Artifact, runtime: StandInRuntime, rng: np.random.Generator
) -> None:
    inputs = score_inputs(artifact, 1, 30, rng)
    wanted = session.run(SCORE_CANDIDATES, inputs)[PROBABILITIES]
    runtime.gpus[0].fail(DeviceError("CUDA: cudaErrorMemoryAllocation: out of memory"))
    with pytest.raises(DeviceError, match="out of memory"):
        session.run(SCORE_CANDIDATES, inputs)
    np.testing.assert_array_equal(session.run(SCORE_CANDIDATES, inputs)[PROBABILITIES], wanted)


def shifted(artifact: Artifact, target: Path) -> Artifact:
    """A version of `artifact` whose logits are all 0.25 higher."""
    shutil.copytree(artifact.path, target)
    graph = onnx.load(target / "graphs/score_candidates.onnx", load_external_data=False)
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    shift = numpy_helper.to_array(weights["calibration_shift"]) + np.float32(0.25)
    weights["calibration_shift"].CopyFrom(numpy_helper.from_array(shift, "calibration_shift"))
    onnx.save(graph, target / "graphs/score_candidates.onnx")
    golden = artifact.golden()
    logits = golden[f"{SCORE_CANDIDATES}/{LOGITS}"] + np.float32(0.25)
    golden |= {f"{SCORE_CANDIDATES}/{LOGITS}": logits, f"{SCORE_CANDIDATES}/{PROBABILITIES}": 1 / (1 + np.exp(-logits))}
    save_file(golden, target / "golden.safetensors")
    manifest = json.loads((target / "manifest.json").read_text()) | {"version": "2", "files": file_digests(target)}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return open_artifact(target)


def test_other_weights_are_refitted_and_another_precision_is_built(
    artifact: Artifact, built_here: BuiltHere, tmp_path: Path
) -> None:
    other, runtime = shifted(artifact, tmp_path / "random/2"), StandInRuntime()
    assert built_here.runtime.built[-2:] == list(GRAPHS)
    assert built_here.runtime.refitted == []
    made = build(other, runtime, built_here.work, cache=built_here.cache, precision="f32", probe_width=64)
    assert made.parity.passed
    assert made.refitted
    assert runtime.refitted == list(GRAPHS)
    narrow = build(other, runtime, built_here.work, cache=built_here.cache, precision="bf16", probe_width=64)
    assert narrow.parity.passed
    assert not narrow.refitted
    assert len(json.loads(next(built_here.cache.glob("*.timings")).read_text())) >= 4


def refits_nothing(plan: bytes, graph: Path) -> bytes:
    raise ArtifactError(f"{graph.name}: TensorRT cannot refit its engine: as told")


def keeps_old_weights(plan: bytes, graph: Path) -> bytes:
    return plan


@pytest.mark.parametrize(
    ("refit", "reason"),
    [
        (refits_nothing, "it cannot be refitted (encode_user.onnx: "),
        (keeps_old_weights, "refitted, it fails: parity: expected"),
    ],
)
def test_what_cannot_be_refitted_is_built(
    artifact: Artifact,
    built_here: BuiltHere,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refit: Callable[[bytes, Path], bytes],
    reason: str,
) -> None:
    other, runtime, said = shifted(artifact, tmp_path / "random/2"), StandInRuntime(), list[str]()
    cache = shutil.copytree(built_here.built.path.parent, tmp_path / "cache")  # type: ignore[union-attr]
    monkeypatch.setattr(runtime, "refit", refit)
    made = build(other, runtime, built_here.work, cache=cache, precision="f32", note=said.append, probe_width=64)
    assert made.parity.passed
    assert made.path is not None
    assert (made.refitted, runtime.built[-2:]) == (False, list(GRAPHS))
    assert [note for note in said if note.startswith(reason) and note.endswith("; building anew")]


def test_an_entry_that_lacks_a_file_is_not_refitted(artifact: Artifact, built_here: BuiltHere, tmp_path: Path) -> None:
    cache = shutil.copytree(built_here.built.path.parent, tmp_path / "cache")  # type: ignore[union-attr]
    (cache / built_here.built.path.name / "encode_user.plan").unlink()  # type: ignore[union-attr]
    other, runtime = shifted(artifact, tmp_path / "random/2"), StandInRuntime()
    made = build(other, runtime, built_here.work, cache=cache, precision="f32", probe_width=64)
    assert made.path is not None
    assert (made.refitted, runtime.refitted) == (False, [])


def test_a_device_that_is_lost_while_it_is_built_for_is_what_is_said(
    artifact: Artifact, built_here: BuiltHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that its memory could not be freed, nor does anybody build on it anew."""
    cache = shutil.copytree(built_here.built.path.parent, tmp_path / "cache")  # type: ignore[union-attr]
    other, runtime = shifted(artifact, tmp_path / "random/2"), StandInRuntime()
    refit = runtime.refit

    def loses_the_device(plan: bytes, graph: Path) -> bytes:
        runtime.gpus[0].fail(DeviceError("CUDA: cudaErrorIllegalAddress: lost", is_lost=True))
        return refit(plan, graph)

    monkeypatch.setattr(runtime, "refit", loses_the_device)
    with pytest.raises(DeviceError, match="lost"):
        build(other, runtime, built_here.work, cache=cache, precision="f32", probe_width=64)
    assert not set(GRAPHS) & set(runtime.built)


def test_gpus_of_two_kinds_are_not_served_on_together(artifact: Artifact, built_here: BuiltHere) -> None:
    """Of one compute capability as well: they have other memory and other kernels are fast on them."""
    runtime = StandInRuntime(count=3)
    runtime.gpus[1].name = "Stand-in NVL"
    with pytest.raises(
        ArtifactError,
        match=r"expected GPUs of one kind \(Stand-in sm_90\), found Stand-in NVL sm_90 as well; make only",
    ):
        open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=1)


def test_an_engine_of_another_machine_or_other_options_is_not_loaded(artifact: Artifact, built_here: BuiltHere) -> None:
    runtime = StandInRuntime()
    runtime.libraries["tensorrt"] = "11.0.0"
    with pytest.raises(ArtifactError, match=r"libraries: expected .*11\.0\.0.*, found .*10\.99\.0.*--target tensorrt"):
        open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=1)
    larger = jagged_work(artifact, OPTIONS.model_copy(update={"max_batch_candidates": 128}))
    with pytest.raises(ArtifactError, match="libraries: expected"):
        open_built(artifact, StandInRuntime(), larger, cache=built_here.cache, precision="f32", slots=1)


def test_the_manifest_says_where_the_engine_comes_from(built_here: BuiltHere, artifact: Artifact) -> None:
    assert built_here.built.path is not None
    about = (built_here.built.path / "engine.json").read_text()
    for part in ("sm_90", "13.0", "stand-in", "f32", "profiles", "structure"):
        assert f'"{part}"' in about
    assert artifact.manifest.files["graphs/weights.safetensors"] in about


def test_the_stand_in_catches_what_a_gpu_would_not_forgive(artifact: Artifact, built_here: BuiltHere) -> None:
    """The rules are there: each of these would be a crash, or silence, on a real device."""
    runtime = StandInRuntime()
    gpu = runtime.gpus[0]
    program = runtime.load(gpu, built_here.built.path / "score_candidates.plan")  # type: ignore[operator]
    stream, address, block = gpu.open_stream(), gpu.allocate(1024), gpu.pin(1024)
    shapes = {"item_rows": (4096, 16)}
    with pytest.raises(RuleBroken, match="profile 0 holds"):
        program.open(0, shapes, stream)
    gpu.upload(address, block, 1024, stream)
    with pytest.raises(RuleBroken, match="free while a stream has work"):
        gpu.free(address)
    gpu.synchronize(stream)
    gpu.free(address)
    gpu.upload(address, block, 1024, stream)
    with pytest.raises(RuleBroken, match="is not allocated"):
        gpu.synchronize(stream)
