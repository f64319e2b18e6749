"""The script of `make gpu-check` for the served engine, on the stand-in: what it measures exists, times mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.checks.tensorrt_gpu import NARROW, Batches, ServedEngine, _Flips, page
from model.artifact import Artifact
from serving.core.options import CoreOptions
from serving.engines.cache import GRAPHS
from serving.engines.parity import GATES
from tests.serving.compiled import artifact
from tests.serving.engines.tensorrt.stand_in import StandInRuntime

__all__ = ["artifact"]


def labelled(artifact: Artifact) -> Batches:
    """The golden batch with made-up labels."""
    golden = artifact.golden()
    encode = {n.removeprefix("encode_user/"): a for n, a in golden.items() if n.startswith("encode_user/")}
    score = {n.removeprefix("score_candidates/"): a for n, a in golden.items() if n.startswith("score_candidates/")}
    states = {layout.name for layout in artifact.manifest.user_state}
    rng = np.random.default_rng(0)
    labels = (rng.random((len(score["request_index"]), 2)) < 0.3).astype(np.float32)
    made = {name: array for name, array in score.items() if name not in states | {"logits", "probabilities"}}
    return [({name: array for name, array in encode.items() if name not in states}, made, labels)]


@pytest.mark.slow
def test_every_check_runs_and_says_what_was_asked_for(artifact: Artifact, tmp_path: Path) -> None:
    options = CoreOptions(max_batch_candidates=128, max_batch_requests=2, max_batch_users=2)
    subject = ServedEngine(
        *(artifact, StandInRuntime(), tmp_path, options), log_batches=lambda: labelled(artifact), probe_width=64, runs=1
    )
    built, parity, latency, ranking, memory = (step() for step in subject.steps)
    assert parity.ok
    assert {"f32_state_0", f"{NARROW}_state_2", f"{NARROW}_probability"} <= parity.figures.keys()
    assert {"f32_seconds", "refit_seconds", "driver", "plugin"} <= built.figures.keys()
    gate = GATES[NARROW][0]
    assert built.figures["refit_error"] <= gate < built.figures["refit_moved"], "the other weights are in the engine"
    assert subject.runtime.refitted == list(GRAPHS)
    assert latency.figures["encode_2_users"].keys() == {"graphs", "plain", "cpu", "plain_ratio", "cpu_ratio"}
    assert latency.figures["torch"].startswith("not measured")
    assert abs(ranking.figures["ne_delta"]) < 0.05
    assert ranking.figures["requests"] == 5
    assert memory.ok
    assert memory.figures["taken_mib"] == memory.figures["two_slots_mib"], "of a stand-in, whose graphs take nothing"
    assert memory.figures["kept_after_closing_mib"] == 0
    (gpu,) = subject.runtime.gpus
    assert gpu.captures >= 2 * sum(len(subject.work(NARROW).of(graph).buckets) for graph in GRAPHS)
    text = page([built, parity, latency, ranking, memory], artifact)
    assert all(f"| {name} |" in text for name in ("engine", "parity", "latency_ms", "ranking", "memory"))


def test_swapped_pairs_and_changed_firsts_are_counted_within_a_request() -> None:
    flips, request = _Flips(), np.array([0, 0, 0, 1, 1])
    flips.add(np.array([0.3, 0.2, 0.1, 0.5, 0.4]), np.array([0.3, 0.1, 0.2, 0.4, 0.5]), request)
    assert flips.shares == {"pairs_swapped": 0.5, "first_changed": 0.5, "requests": 2}
