"""`kunlun evaluate` states figures per slice, and the NE gain of one model over another with its paired interval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kunlun.cli import main
from model.data.request_log import load_request_log
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.training.config import parse_config
from model.training.fit_run import fit_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, two seeds of a regression trained for two passes, one trained for one step, one on another split."""
    path = tmp_path_factory.mktemp("evaluate")
    generate(SyntheticConfig(seed=4, requests=500, users=60, items=40), path / "log")
    log = load_request_log(path / "log")
    common = {"model": {"architecture": "logistic_regression"}, "threads": 1, "device": "cpu", "batch_requests": 16}
    for name, own in {
        "a0": {"epochs": 2},
        "a1": {"epochs": 2, "seed": 1},
        "b": {"max_seconds": 1e-6},
        "user": {"max_seconds": 1e-6, "split": "user"},
    }.items():
        fit_run(parse_config(common | own), log, path / name)
    return path


def _evaluate(workdir: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    runs = [str(workdir / a) if (workdir / a).exists() else a for a in arguments]
    assert main(["evaluate", *runs, "--data", str(workdir / "log")]) == 0
    return capsys.readouterr().out


def test_figures_are_stated_overall_and_per_slice(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json.loads(_evaluate(workdir, capsys, "a0", "--json").splitlines()[-1])["tasks"]["click"]
    assert {"ne", "auc", "gauc", "ndcg10", "mrr", "ece", "ne_bayes", "over_bayes"} <= figures.keys()
    assert figures["over_bayes"]["value"] > 0
    surfaces = [own for name, own in figures["slices"].items() if name.startswith("surface=")]
    assert sum(own["examples"] for own in surfaces) == figures["examples"]
    assert json.loads((workdir / "a0" / "evaluation.json").read_text())["tasks"]["click"] == figures


def test_figures_of_a_log_in_mapped_files_are_the_same(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = json.loads(_evaluate(workdir, capsys, "a0", "--json", "--storage", "memory").splitlines()[-1])
    cache = workdir / "mapped"
    flags = ["--json", "--storage", "mapped", "--cache", str(cache)]
    assert json.loads(_evaluate(workdir, capsys, "a0", *flags).splitlines()[-1]) == held
    assert (cache / "layout.json").is_file()


def test_the_gain_over_another_model_is_paired_over_users_and_seeds(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.loads(_evaluate(workdir, capsys, "a0", "a1", "--against", "b", "--json").splitlines()[-1])
    gain = line["ne_gain_percent"]["click"]["*"]
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert set(line["runs"]) == {str(workdir / "a0"), str(workdir / "a1")}
    text = _evaluate(workdir, capsys, "a0", "--against", "b")
    assert f"relative NE gain over {workdir / 'b'} in % (positive: better), paired over users" in text
    assert "click, surface=surface-1" in text


def test_runs_that_hold_out_other_requests_are_not_compared(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(workdir / "a0"), "--against", str(workdir / "user"), "--data", str(workdir / "log")]
    assert main(["evaluate", *arguments]) == 2
    assert "(split user) than" in capsys.readouterr().err
