"""Alarms: steps that are not finite never reach the weights and are described; jumps of label rates are named."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.data.request_log import RequestLog
from model.data.split import split_requests
from model.layers.embedding import InputDropout
from model.ranker import KunlunRanker
from model.training.alarms import TrainingDiverged, label_rate_jumps
from model.training.batches import Batch
from model.training.config import OnNaN, OptimizerConfig, TrainConfig, parse_config
from model.training.fit_features import fit_features
from model.training.forward import masked_bce, raw_logits
from model.training.run import TrainingRun
from model.training.trainer import Trainer

CONFIG = TrainConfig(model="tiny", batch_requests=40, threads=1, optimizer=OptimizerConfig(dense_lr=3e-3, warmup_steps=2))


def a_trainer(log: RequestLog, path: Path, config: TrainConfig = CONFIG) -> Trainer:
    split = split_requests(log, config.split.value)
    run = TrainingRun.create(path, config, log.schema, fit_features(log, split.train))
    return Trainer(run, log, split.train, split.validation)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_requests_and_parameters(log: RequestLog, tmp_path: Path) -> None:
    trainer = a_trainer(log, tmp_path / "run")
    name, parameter = next((n, p) for n, p in trainer.learner.model.score_candidates.named_parameters() if p.dim() == 1)
    with torch.no_grad():
        parameter[0] = float("nan")
    weights = trainer.learner.model.tables.weight("item").detach().clone()
    with pytest.raises(TrainingDiverged, match=r"weights are not finite in score_.* at step 0; train again with a lower"):
        trainer.fit(lambda _: None, lambda _: None)
    assert torch.equal(trainer.learner.model.tables.weight("item").detach(), weights)
    report = json.loads((tmp_path / "run" / "alarms" / "step-0000000.json").read_text())
    assert report["step"] == report["epoch"] == 0
    assert set(report["requests"]) < set(log.request_ids)
    assert len(report["requests"]) == 40
    assert [w["name"] for w in report["weights"]] == [f"score_candidates.{name}"]
    assert report["weights"][0]["not_finite"] == 1
    assert report["gradients"]


def overflowing(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The losses of the given steps overflow, and with them their gradients."""
    counter = itertools.count()

    def overflow(*arguments: Tensor) -> Tensor:
        return masked_bce(*arguments) * (float("inf") if next(counter) in steps else 1.0)

    monkeypatch.setattr("model.training.learner.masked_bce", overflow)


def test_steps_that_are_not_finite_are_skipped_when_asked_and_counted(
    log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing(monkeypatch, {3, 5})
    trainer, losses = a_trainer(log, tmp_path / "run", CONFIG.model_copy(update={"on_nan": OnNaN.SKIP})), []
    result = trainer.fit(lambda p: losses.append(p.loss), lambda _: None)
    assert [number for number, x in enumerate(losses) if not np.isfinite(x)] == [3, 5]
    assert result["skipped"] == 2
    assert all(torch.isfinite(p).all() for p in trainer.learner.model.parameters())
    assert sorted(f.name for f in (tmp_path / "run" / "alarms").iterdir()) == ["step-0000003.json", "step-0000005.json"]
    assert json.loads((tmp_path / "run" / "alarms" / "step-0000003.json").read_text())["loss"] == "inf"


def test_a_skipped_step_leaves_running_statistics_as_they_were(
    log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = itertools.count()

    def poisoned(model: KunlunRanker, batch: Batch, dropout: InputDropout | None = None) -> Tensor:
        if next(counter) == 3:
            batch.items.dense.fill_(float("nan"))
        return raw_logits(model, batch, dropout)

    monkeypatch.setattr("model.training.learner.raw_logits", poisoned)
    config = {"model": {"architecture": "din", "activation": "dice"}, "batch_requests": 40, "threads": 1, "on_nan": "skip"}
    trainer = a_trainer(log, tmp_path / "run", parse_config(config))
    result = trainer.fit(lambda _: None, lambda _: None)
    assert result["skipped"] == 1
    buffers = {n: b for n, b in trainer.learner.model.named_buffers() if "running" in n}
    assert buffers
    for name, buffer in buffers.items():
        assert torch.isfinite(buffer).all(), name
    counts = {int(b) for n, b in trainer.learner.model.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {result["steps"] - 1}


def test_skips_are_bounded(log: RequestLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, {1, 2, 4})
    trainer = a_trainer(log, tmp_path / "run", CONFIG.model_copy(update={"on_nan": OnNaN.SKIP, "max_skipped_steps": 2}))
    with pytest.raises(TrainingDiverged, match=r"the loss is inf at step 4.*; 2 steps had been skipped before"):
        trainer.fit(lambda _: None, lambda _: None)


def relabelled(log: RequestLog, first: int, rate: float) -> RequestLog:
    """The log with labels drawn at `rate` from request `first` on."""
    labels = log.labels.copy()
    start = log.offsets[first]
    labels[start:] = np.random.default_rng(0).random(labels[start:].shape) < rate
    return replace(log, labels=labels)


def test_label_rates_that_jump_are_named(log: RequestLog) -> None:
    split = split_requests(log, "time")
    assert label_rate_jumps(log, split.train, split.validation) == []
    logging_changed = relabelled(log, int(split.train[len(split.train) // 2]), 0.9)
    alarms = label_rate_jumps(logging_changed, split.train, split.validation)
    assert any(a.startswith("label rate of 'click' jumps from ") and "in window 5 of 8" in a for a in alarms)
    held_out_differs = relabelled(log, int(split.validation[0]), 0.9)
    (alarm,) = label_rate_jumps(held_out_differs, split.train, split.validation)
    assert "in the training and 0.8" in alarm
