"""The whole product in one run: every stage as a child process, held-out requests replayed over gRPC."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.artifact import open_artifact
from serving.core.frontier import load_frontier
from serving.engines.parity import GATES

CONFIG = """
name: demo
model: tiny
split: time
epochs: 1
batch_requests: 128
threads: 1
optimizer: {dense_lr: 0.005}
"""


@pytest.mark.slow
def test_the_demo_trains_serves_and_agrees_with_its_twin(tmp_path: Path) -> None:
    config = tmp_path / "quick.yaml"
    config.write_text(CONFIG)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kunlun.cli",
            "demo",
            "--config",
            str(config),
            "--requests",
            "1000",
            "--keep",
            str(tmp_path / "w"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["requests"] == 1000
    assert figures["errors"] == 0
    assert figures["rungs"] == {"FULL": 1000}
    gate, _ = GATES[figures["precision"]]  # what this CPU computes in
    assert figures["max_score_difference"] <= gate
    assert figures["ne_online"] == pytest.approx(figures["ne_offline_same_impressions"], abs=gate)
    assert figures["ne_bayes"] < figures["ne_no_order"] < figures["ne_no_history"]
    assert figures["ne_test"] > figures["ne_bayes"]
    assert 0 < figures["mfu"] < 1
    assert figures["p50_ms"] <= figures["p99_ms"]
    assert "before and after a click" in done.stdout
    measure_the_frontier(tmp_path / "w")


def measure_the_frontier(workdir: Path) -> None:
    """`kunlun frontier` on what the demo left behind, and the ladder's file that a server would read."""
    [manifest] = (workdir / "models").glob("*/*/manifest.json")
    artifact = manifest.parent
    command = [sys.executable, "-m", "kunlun.cli", "frontier", str(artifact), "--data", str(workdir / "data")]
    done = subprocess.run([*command, "--requests", "1000", "--json"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    [entry] = [path for path in (workdir / "models" / ".engines").iterdir() if path.is_dir()]
    frontier = load_frontier(entry, open_artifact(artifact).digest)
    assert frontier is not None
    assert frontier.requests == measured["requests"] == 1000
    steps = {(step.rung, step.setting): step for step in frontier.steps}
    prior, stale = steps["PRIOR", 0.0], steps["STALE_STATE", 1.0]
    assert prior.ms_saved == pytest.approx(frontier.ms_full)
    assert prior.ne_loss > 2 * prior.ne_loss_error, "the model beats popularity"
    assert 0 < stale.ms_saved < prior.ms_saved
    assert steps["FEWER_CANDIDATES", 0.125].ne_loss > steps["FEWER_CANDIDATES", 0.5].ne_loss - 2 * prior.ne_loss_error
