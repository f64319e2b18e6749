"""Cutting CPUs into slots: measured on the real engine, used on the very machine and artifact alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kunlun.cli import main
from model.artifact import Artifact
from model.config import save_json
from serving.config import ServerConfig
from serving.server import _with_calibrated_slots
from serving.tuning import calibrate_slots
from serving.tuning.calibrate_slots import (
    Calibration,
    Split,
    best_split,
    calibrate,
    calibration_path,
    even_splits,
)


def test_every_split_uses_all_cpus() -> None:
    assert even_splits(1) == ((1, 1),)
    assert even_splits(6) == ((6, 1), (3, 2), (2, 3), (1, 6))


def test_the_fastest_split_serves(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate_slots, "SECONDS", 0.05)
    assert main(["calibrate", str(artifact.path), "--cpus", "2", "--cache", str(tmp_path), "--precision", "f32", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    splits = [(split["slots"], split["threads"]) for split in printed["splits"]]
    assert sorted(splits) == [(1, 2), (2, 1)]
    rates = [split["requests_per_s"] for split in printed["splits"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0

    best = best_split(tmp_path, artifact, precision="f32", cpus=2)
    assert best is not None
    assert (best.slots, best.threads) == splits[0]
    monkeypatch.setattr("serving.server.available_cpus", lambda: 2)
    config = ServerConfig(repository=artifact.path.parent.parent, engine_cache=tmp_path, precision="f32")
    chosen = _with_calibrated_slots(config, artifact)
    assert (chosen.slot_count, chosen.slot_threads) == splits[0]
    told = config.model_copy(update={"slots": 3})
    assert _with_calibrated_slots(told, artifact) == told


def test_other_machines_and_artifacts_are_not_believed(artifact: Artifact, tmp_path: Path) -> None:
    path = calibration_path(tmp_path, artifact)
    found = calibrate_once(artifact, tmp_path)
    for field, value in (("device", "another"), ("artifact_digest", "0"), ("cpus", 3), ("precision", "bf16")):
        save_json(found.model_copy(update={field: value}), path)
        assert best_split(tmp_path, artifact, precision="f32", cpus=1) is None, field
    save_json(found, path)
    assert best_split(tmp_path, artifact, precision="f32", cpus=1) is not None
    path.write_text("{}")
    assert best_split(tmp_path, artifact, precision="f32", cpus=1) is None


def calibrate_once(artifact: Artifact, cache: Path) -> Calibration:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate_slots, "SECONDS", 0.0)
        found = calibrate(artifact, cache=cache, precision="f32", cpus=1, candidates=24, note=lambda text: None)
    assert [type(split) for split in found.splits] == [Split]
    return found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--candidates", "0"], "--candidates: expected 1 to 1024, found 0"),
        (["--cpus", "0"], "--cpus: expected at least 1, found 0"),
    ],
)
def test_bad_flags_are_named(artifact: Artifact, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert main(["calibrate", str(artifact.path), *flags]) == 2
    assert message in capsys.readouterr().err
