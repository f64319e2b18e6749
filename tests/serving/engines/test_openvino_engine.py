"""The OpenVINO engine against the torch twin, and the promises the core builds on."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13

from model.architectures.kunlun.options import TargetPoolingConfig
from model.architectures.registry import load_preset
from model.architectures.terms import FeatureWidths
from model.artifact import Artifact, ArtifactError
from model.config import parse_yaml
from model.schema import Schema
from model.signature import ENCODE_USER, SCORE_CANDIDATES, encode_user_signature, score_candidates_signature
from serving.engines.base import Session
from serving.engines.open import open_engine
from serving.engines.openvino_engine import (
    LEAST_BF16_WIDTH,
    cpu_settings,
    measure_peak_flops,
    resolve_precision,
    row_invariant_in_bf16,
)
from serving.engines.parity import check_parity
from tests.serving.random_artifact import SCHEMA, random_inputs


@pytest.fixture(scope="module", params=["operators", "fused_block"])
def session(artifact: Artifact, request: pytest.FixtureRequest) -> Session:
    """Every promise holds for both forms of the engine."""
    fused = request.param == "fused_block"
    cache = request.getfixturevalue("fused_engine_cache" if fused else "engine_cache")
    engine = open_engine(artifact, cache=cache, precision="f32", threads_per_slot=1, slots=1, fused_block=fused)
    assert engine.device_peak_flops > 1e8
    return engine.open_session()


def test_cached_engine_computes_what_the_twin_computes(artifact: Artifact, session: Session) -> None:
    parity = check_parity(session, "f32", artifact)
    assert parity.passed, parity
    assert parity.max_probability_error < 1e-5


def test_user_states_have_the_same_bits_whatever_the_batch(
    artifact: Artifact, session: Session, rng: np.random.Generator
) -> None:
    signature = encode_user_signature(artifact.schema, artifact.config)
    inputs = random_inputs(signature, {"U": 8, "T_click": 16, "T_impression": 32}, rng)
    together = session.run(ENCODE_USER, inputs)
    for users in (1, 2, 3, 4):
        fewer = session.run(ENCODE_USER, {name: tensor[:users] for name, tensor in inputs.items()})
        for name, tensor in fewer.items():
            assert np.array_equal(tensor, together[name][:users]), (users, name)


def test_scores_have_the_same_bits_whatever_the_batch(artifact: Artifact, session: Session, rng: np.random.Generator) -> None:
    signature = score_candidates_signature(artifact.schema, artifact.config)
    inputs = random_inputs(signature, {"R": 8, "C": 256}, rng)
    together = session.run(SCORE_CANDIDATES, inputs)
    for chosen in (np.arange(1), np.array([200]), np.arange(17), rng.permutation(256)[:100]):
        parts = dict(inputs)
        for name in ("item_rows", "item_dense", "request_index"):
            parts[name] = inputs[name][chosen]
        alone = session.run(SCORE_CANDIDATES, parts)
        for name, tensor in alone.items():
            assert np.array_equal(tensor, together[name][chosen]), (len(chosen), name)


@pytest.mark.parametrize("width", [32, LEAST_BF16_WIDTH, 320])
@pytest.mark.parametrize("outputs", [LEAST_BF16_WIDTH, 128, 1024])
def test_rows_of_a_bf16_product_have_the_same_bits_in_any_number(width: int, outputs: int, rng: np.random.Generator) -> None:
    """What bit-equality in bf16 rests on: the widths that models of `LEAST_BF16_WIDTH` have, from one row on."""
    try:
        resolve_precision("bf16")
    except ArtifactError as error:
        pytest.skip(str(error))  # this CPU has no bf16, so no engine here can break the rule
    rows = opset13.parameter([-1, width], np.float32)
    weights = opset13.constant(rng.standard_normal((width, outputs)).astype(np.float32))
    model = ov.Model([opset13.matmul(rows, weights, False, False)], [rows], "product")
    request = ov.Core().compile_model(model, "CPU", cpu_settings("bf16", 1)).create_infer_request()
    inputs = rng.standard_normal((1000, width)).astype(np.float32)
    expected = np.array(request.infer([inputs])[0])
    for count in (1, 2, 3, 4, 8, 16, 17, 32, 100, 500):
        assert np.array_equal(np.array(request.infer([inputs[:count]])[0]), expected[:count]), count


def test_models_whose_bf16_rows_depend_on_others_are_served_in_f32_unless_told() -> None:
    widths, small = FeatureWidths.of(parse_yaml(Schema, SCHEMA)), load_preset("small")
    assert row_invariant_in_bf16(small, widths)
    assert not row_invariant_in_bf16(load_preset("tiny"), widths), "narrow"
    for odd in ({"fm_rank": 15}, {"hidden": 250}):
        config = small.model_copy(update={"user_interaction": small.user_interaction.model_copy(update=odd)})
        assert not row_invariant_in_bf16(config, widths), odd
    for width in (64, 32):
        pooling = small.model_copy(update={"target_pooling": TargetPoolingConfig(width=width)})
        assert row_invariant_in_bf16(pooling, widths) == (width == 64)
    assert not row_invariant_in_bf16(load_preset("small_exact"), widths), "not known to be"
    assert resolve_precision("auto", False) == "f32"


def test_outputs_belong_to_the_caller(artifact: Artifact, session: Session, rng: np.random.Generator) -> None:
    signature = score_candidates_signature(artifact.schema, artifact.config)
    first = session.run(SCORE_CANDIDATES, random_inputs(signature, {"R": 2, "C": 16}, rng))
    kept = {name: tensor.copy() for name, tensor in first.items()}
    session.run(SCORE_CANDIDATES, random_inputs(signature, {"R": 2, "C": 16}, rng))
    for name, tensor in first.items():
        assert np.array_equal(tensor, kept[name])


def test_sessions_run_in_parallel_threads(artifact: Artifact, engine_cache: Path, rng: np.random.Generator) -> None:
    engine = open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=2)
    signature = score_candidates_signature(artifact.schema, artifact.config)
    inputs = random_inputs(signature, {"R": 2, "C": 64}, rng)
    results: list[np.ndarray] = []
    sessions = [engine.open_session(), engine.open_session()]

    def work(session: Session) -> None:
        results.extend(session.run(SCORE_CANDIDATES, inputs)["logits"] for _ in range(20))

    threads = [threading.Thread(target=work, args=(s,)) for s in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(results) == 40
    assert all(np.array_equal(result, results[0]) for result in results)
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.open_session()


def test_peak_probe_measures_something_plausible() -> None:
    assert 1e8 < measure_peak_flops("f32", 1) < 1e14


FIRST_RUNS = """
import sys, threading
import openvino as ov
from serving.engines.openvino_engine import _fill_type_tables
_fill_type_tables()  # what opening an engine does
sys.setswitchinterval(1e-6)
together = threading.Barrier(8)
slots = [threading.Thread(target=lambda: (together.wait(), ov.Type.f32.to_dtype())) for _ in range(8)]
[slot.start() for slot in slots]
[slot.join() for slot in slots]
"""


def test_first_runs_of_slots_at_once_do_not_hang() -> None:
    for _ in range(3):  # without the tables filled, about every second process hangs for good
        subprocess.run([sys.executable, "-c", FIRST_RUNS], check=True, timeout=60)
