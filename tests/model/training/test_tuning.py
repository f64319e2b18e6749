"""Hyper-parameter search: spaces, pruning, a table, the best configuration, and continuing after a kill."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kunlun.cli import UsageError
from model.cli.tune import command
from model.config import ConfigError
from model.data.request_log import RequestLog
from model.training.config import load_train_config
from model.training.fit_run import Observer
from model.training.run import BEST
from model.training.search_space import load_space, with_values
from model.training.tuning import Search

BASE: dict[str, Any] = {
    "model": "tiny", "epochs": 2, "batch_requests": 80, "threads": 1, "peak_flops": 1e12, "optimizer": {"warmup_steps": 2},
}  # fmt: skip
SPACE = """
optimizer.dense_lr: {low: 1.0e-3, high: 1.0e-2, log: true}
augment.id_dropout: {choices: [0.0, 0.3]}
"""


def a_search(path: Path, log: RequestLog, *, resume: bool = False, space: str = SPACE) -> Search:
    file = path.parent / "space.yaml"
    file.write_text(space)
    return Search(path, BASE, load_space(file, BASE), log, resume=resume)


def test_values_go_to_dotted_paths_and_into_presets() -> None:
    config, data = with_values(BASE, {"optimizer.dense_lr": 0.5, "model.state_tokens": 3})
    assert config.optimizer.dense_lr == 0.5
    assert config.optimizer.warmup_steps == 2
    assert data["model"] == {"preset": "tiny", "state_tokens": 3}
    assert config.model.state_tokens == 3  # type: ignore[attr-defined]
    assert with_values({}, {"model.state_tokens": 3})[1]["model"] == {"preset": "small", "state_tokens": 3}
    assert BASE["model"] == "tiny"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("optimizer.dense_rl: {choices: [1.0]}", r"optimizer.dense_rl: 1.0 does not fit: .*did you mean 'dense_lr'\?"),
        ("optimizer.dense_lr: {low: 0.1, high: 0.01}", "expected `low` below `high`"),
        ("optimizer.dense_lr: {low: 0, high: 0.01, log: true}", "`log` is for ranges above 0"),
        ("epochs: {low: 0, high: 3}", "epochs: 0 does not fit: .*greater than or equal to 1; found 0"),
        ("epochs: {choices: [1], low: 2}", "give either `choices` or `low` and `high`"),
        ("epochs: {low: 1, high: 3, step: 0}", "`step` is for ranges: above 0, and an integer where both ends are"),
        ("epochs: {low: 1, high: 3, step: 0.5}", "`step` is for ranges: above 0, and an integer where both ends are"),
        ("{}", "expected at least one field to vary, found none"),
    ],
)
def test_spaces_that_cannot_be_are_named(tmp_path: Path, space: str, message: str) -> None:
    (tmp_path / "space.yaml").write_text(space)
    with pytest.raises(ConfigError, match=message):
        load_space(tmp_path / "space.yaml", BASE)


def test_a_search_leaves_a_table_and_the_best_configuration(log: RequestLog, tmp_path: Path) -> None:
    ended: list[Any] = []
    search = a_search(tmp_path / "search", log)
    search.run(3, Observer(), ended.append)
    rows = list(csv.DictReader((tmp_path / "search" / "results.csv").open()))
    assert [row["state"] for row in rows] == ["complete"] * 3 == [row.state for row in ended]
    best = min(rows, key=lambda row: float(row["validation_ne"]))
    config = load_train_config(tmp_path / "search" / "best.yaml")
    assert config.optimizer.dense_lr == float(best["optimizer.dense_lr"])
    assert config.augment.id_dropout == float(best["augment.id_dropout"])
    assert config.batch_requests == 80
    weights = [folder.name for folder in (tmp_path / "search" / "trials").iterdir() if (folder / BEST).exists()]
    assert weights == [f"{int(best['trial']):04d}"]


def test_a_search_that_was_killed_tries_the_same_values_again(log: RequestLog, tmp_path: Path) -> None:
    def killed(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    search = a_search(tmp_path / "search", log)
    search.run(1, Observer(), lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        search.run(2, Observer(step=killed), lambda _: None)
    values = search.rows()[1].values
    resumed = a_search(tmp_path / "search", log, resume=True)
    assert resumed.finished == 1
    resumed.run(2, Observer(), lambda _: None)
    assert resumed.finished == 2
    again = [row for row in resumed.rows() if row.state == "complete"][1]
    assert again.values == values
    with pytest.raises(ConfigError, match="is not empty; give another --output, or --resume"):
        a_search(tmp_path / "search", log)
    with pytest.raises(ConfigError, match="its space was another"):
        a_search(tmp_path / "search", log, resume=True, space="epochs: {choices: [1, 2]}")
    with pytest.raises(ConfigError, match="no search to resume"):
        a_search(tmp_path / "other", log, resume=True)


def test_values_that_do_not_go_together_fail_and_the_search_goes_on(log: RequestLog, tmp_path: Path) -> None:
    """`tiny` has two experts, so user tokens between the ends, which are tried beforehand, may not be divisible by them."""
    search = a_search(tmp_path / "search", log, space="model.user_tokens: {low: 4, high: 6}")
    search.study.enqueue_trial({"model.user_tokens": 5})
    search.study.enqueue_trial({"model.user_tokens": 4})
    notes: list[str] = []
    search.run(1, Observer(note=notes.append), lambda _: None)
    assert [(row.state, row.values["model.user_tokens"]) for row in search.rows()] == [("fail", 5), ("complete", 4)]
    assert any("user_tokens 5 must be a multiple of user_interaction.experts 2" in note for note in notes)
    assert a_search(tmp_path / "search", log, resume=True, space="model.user_tokens: {low: 4, high: 6}").finished == 1


def test_trials_worse_than_the_median_are_pruned(log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.8, 0.7] * 4 + [0.9, 0.1])
    monkeypatch.setattr("model.training.trainer.mean_ne", lambda *_: next(figures))
    search = a_search(tmp_path / "search", log)
    search.run(5, Observer(), lambda _: None)
    assert [row.state for row in search.rows()] == ["complete"] * 4 + ["pruned"]
    assert search.rows()[4].validation_ne == 0.9
    best = search.best()
    assert best is not None
    assert best.value == 0.7


def test_the_command_ends_with_the_figures(log_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BASE | {"epochs": 1}))
    (tmp_path / "space.yaml").write_text(SPACE)
    parser = argparse.ArgumentParser()
    command.configure(parser)
    common = [str(tmp_path / "config.yaml"), "--space", str(tmp_path / "space.yaml"), "--data", str(log_directory)]
    output = ["--output", str(tmp_path / "search"), "--trials"]
    assert command.run(parser.parse_args([*common, *output, "1", "--json"])) == 0
    assert command.run(parser.parse_args([*common, *output, "2", "--json", "--resume"])) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["trials"] == 2
    assert figures["values"].keys() == {"optimizer.dense_lr", "augment.id_dropout"}
    with pytest.raises(UsageError, match="--trials: expected at least 1, found 0"):
        command.run(parser.parse_args([*common, *output, "0"]))
