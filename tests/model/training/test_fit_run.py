"""A whole run: early stopping, and the refit on training and validation part after model selection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.data.split import split_requests
from model.training.config import OptimizerConfig, RefitLength, TrainConfig
from model.training.evaluation import evaluate_run
from model.training.fit_run import Observer, fit_run
from model.training.plan import evaluations
from model.training.run import CHECKPOINT, SELECTION, TrainingRun, has_checkpoint

CONFIG = TrainConfig(
    model="tiny",
    epochs=2,
    batch_requests=40,
    threads=1,
    peak_flops=1e12,
    optimizer=OptimizerConfig(dense_lr=3e-3, warmup_steps=2),
)
REFIT = CONFIG.model_copy(update={"refit_on_validation": True})


class Killed(Exception):
    pass


def killed_at(total: int) -> Observer:
    """Raises after so many steps of all trainings together."""
    seen = []

    def step(progress: object) -> None:
        seen.append(progress)
        if len(seen) == total:
            raise Killed

    return Observer(step=step)


def checkpoints_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.training.trainer.CHECKPOINT_EVERY_S", -1.0)


def test_a_refit_trains_as_long_as_the_best_run_on_both_parts(log: RequestLog, tmp_path: Path) -> None:
    result = fit_run(REFIT, log, tmp_path / "run")
    run, first = TrainingRun.open(tmp_path / "run"), TrainingRun.open(tmp_path / "run" / SELECTION)
    chosen = first.result
    assert result["stopped"] == "refit"
    assert result["steps"] == result["best"]["step"] == chosen["best"]["step"]
    assert result["planned_steps"] == chosen["planned_steps"]
    assert result["best"]["validation_ne"] == chosen["best"]["validation_ne"]
    assert result["calibration"] == chosen["calibration"]
    split = split_requests(log, "time")
    assert (
        result["steps_per_epoch"] == int(np.ceil((len(split.train) + len(split.validation)) / 40)) > chosen["steps_per_epoch"]
    )
    assert (run.path / "score_reference.json").read_text() == (first.path / "score_reference.json").read_text()
    keys = {which.path: set(which.encoder.stats.vocabularies["item"].tolist()) for which in (run, first)}
    assert keys[first.path] <= keys[run.path]
    ne = evaluate_run(run, log, "test")["click"]["ne"]["value"]
    assert 0.5 < ne < 1.5
    with pytest.raises(ConfigError, match=r"was refitted on the validation part; measure .*selection on it"):
        evaluate_run(run, log, "validation")
    assert evaluate_run(first, log, "validation")["click"]["ne"]["value"] == pytest.approx(
        chosen["best"]["validation_ne"], abs=1e-4
    )


def test_a_warm_start_begins_where_the_earlier_run_ended_averages_included(log: RequestLog, tmp_path: Path) -> None:
    first = fit_run(CONFIG, log, tmp_path / "first")
    optimizer = CONFIG.optimizer.model_copy(update={"dense_lr": 1e-9, "sparse_lr": 1e-9, "average_decay": 0.999})
    again = CONFIG.model_copy(update={"epochs": 1, "warm_start": tmp_path / "first", "optimizer": optimizer})
    second = fit_run(again, log, tmp_path / "second")
    assert second["best"]["validation_ne"] == pytest.approx(first["best"]["validation_ne"], abs=1e-5)


@pytest.mark.parametrize("steps", [5, 19])
def test_a_warm_refit_that_was_killed_begins_where_one_that_was_not_began(
    log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    checkpoints_every_step(monkeypatch)
    fit_run(CONFIG.model_copy(update={"epochs": 1}), log, tmp_path / "first")
    config = REFIT.model_copy(update={"warm_start": tmp_path / "first"})
    fit_run(config, log, tmp_path / "whole")
    with pytest.raises(Killed):
        fit_run(config, log, tmp_path / "cut", killed_at(steps))
    fit_run(config, log, tmp_path / "cut", resume=True)
    ours, wanted = (TrainingRun.open(tmp_path / name).load_model() for name in ("cut", "whole"))
    for (name, a), (_, b) in zip(ours.state_dict().items(), wanted.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_that_a_kill_left_aside_is_one(log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints_every_step(monkeypatch)
    with pytest.raises(Killed):
        fit_run(REFIT, log, tmp_path / "run", killed_at(5))
    first = tmp_path / "run" / SELECTION
    (first / CHECKPOINT).rename(first / f".{CHECKPOINT}.old")
    titles: list[object] = []
    fit_run(REFIT, log, tmp_path / "run", Observer(step=lambda p: titles.append(p.step)), resume=True)
    assert titles[0] == 5


def test_a_run_is_evaluated_as_often_as_asked(log: RequestLog, tmp_path: Path) -> None:
    lines: list[dict[str, object]] = []
    config = CONFIG.model_copy(update={"evaluations_per_epoch": 5})
    result = fit_run(config, log, tmp_path / "run", Observer(evaluated=lines.append))
    assert result["steps_per_epoch"] == 8
    assert [line["step"] for line in lines] == [1, 3, 5, 7, 8, 9, 11, 13, 15, 16]


def test_a_refit_by_passes_takes_more_steps(log: RequestLog, tmp_path: Path) -> None:
    result = fit_run(REFIT.model_copy(update={"epochs": 1, "refit_length": RefitLength.PASSES}), log, tmp_path / "run")
    chosen = TrainingRun.open(tmp_path / "run" / SELECTION).result
    assert result["steps"] == result["steps_per_epoch"] > chosen["best"]["step"]


@pytest.mark.parametrize("steps", [5, 19])
def test_a_refit_that_was_killed_ends_as_one_that_was_not(
    log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    checkpoints_every_step(monkeypatch)
    whole = fit_run(REFIT, log, tmp_path / "whole")
    with pytest.raises(Killed):
        fit_run(REFIT, log, tmp_path / "cut", killed_at(steps))
    resumed = fit_run(REFIT, log, tmp_path / "cut", resume=True)
    assert resumed | {"seconds": 0, "best": 0} == whole | {"seconds": 0, "best": 0}
    ours, wanted = (TrainingRun.open(tmp_path / name).load_model() for name in ("cut", "whole"))
    for (name, a), (_, b) in zip(ours.state_dict().items(), wanted.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_metrics_of_a_refit_that_was_killed_before_its_first_checkpoint_are_not_kept(
    log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.training.trainer.METRICS_EVERY_S", -1.0)
    with pytest.raises(Killed):
        fit_run(REFIT, log, tmp_path / "run", killed_at(19))  # 16 steps select
    result = fit_run(REFIT, log, tmp_path / "run", resume=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, result["steps"] + 1))


def test_the_evaluations_of_an_epoch_are_found_once(log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every step: an epoch may have a hundred thousand."""
    asked: list[int] = []

    def counted(batches: int, wanted: int, epoch: int) -> frozenset[int]:
        asked.append(epoch)
        return evaluations(batches, wanted, epoch)

    monkeypatch.setattr("model.training.trainer.evaluations", counted)
    fit_run(CONFIG, log, tmp_path / "run")
    assert asked == [0, 1]


def test_metrics_hold_every_evaluation_once_after_a_kill(
    log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.training.trainer.METRICS_EVERY_S", -1.0)  # a line per step
    with pytest.raises(Killed):
        fit_run(CONFIG, log, tmp_path / "run", killed_at(5))
    assert not has_checkpoint(tmp_path / "run"), "it begins again"
    fit_run(CONFIG, log, tmp_path / "run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "validation_ne" not in line]
    assert steps == sorted(set(steps))
    assert len([line for line in lines if "validation_ne" in line]) == 2
    assert all(line["mfu"] <= line["mfu_padded"] for line in lines if line["mfu"])
    assert {"loss", "examples_per_s", "padding", "mfu"} <= lines[0].keys()


def test_patience_ends_a_run_that_no_longer_improves(log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.9, 0.8, 0.85, 0.81, 0.7])
    monkeypatch.setattr("model.training.trainer.mean_ne", lambda *_: next(figures))
    config = CONFIG.model_copy(update={"epochs": 5, "patience": 2})
    result = fit_run(config, log, tmp_path / "run")
    assert result["stopped"] == "patience"
    assert result["best"]["validation_ne"] == 0.8
    assert result["best"]["step"] == 2 * result["steps_per_epoch"]
    assert result["steps"] == 4 * result["steps_per_epoch"]
