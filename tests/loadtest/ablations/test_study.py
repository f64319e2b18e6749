"""A whole study on a few hundred requests: every stage as a command, rows that are defined, nothing done twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from loadtest.checks import ablations


@pytest.mark.slow
def test_a_study_trains_measures_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablations, "SIZES", {True: ("300", "40")})
    command = ["ablations", "--fast", "--workdir", str(tmp_path), "--only", "neither", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", command)
    assert ablations.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["ok"]
    assert [row["name"] for row in line["rows"]] == ["default", "neither"]
    default, neither = line["rows"]
    assert set(default["ne_change_percent"].values()) == {0.0}
    assert neither["ne_change_percent"]["low"] <= neither["ne_change_percent"]["value"] <= neither["ne_change_percent"]["high"]
    assert neither["ne_change_percent"]["value"] == pytest.approx(100 * (neither["ne"] / default["ne"] - 1), abs=2e-3)
    mflop = default["mflop"]
    assert mflop["request_500"] - mflop["request_100"] == pytest.approx(400 * mflop["candidate"], rel=1e-3)
    assert default["speed_ratio"]["requests_per_s"] == 1.0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(made) == 2
    assert ablations.main() == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["rows"] == line["rows"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == made
