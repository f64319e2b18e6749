"""Training on mapped files gives the run that training in memory gives, window by window, and resumes as exactly."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from model.data.mapped_log import map_request_log
from model.data.request_log import RequestLog
from model.training import plan
from model.training.config import OptimizerConfig, TrainConfig
from model.training.evaluation import evaluate_run
from model.training.fit_run import Observer, fit_run
from model.training.run import TrainingRun

CONFIG = TrainConfig(
    model="tiny",
    epochs=2,
    batch_work=1500,
    sort_batches=3,
    shuffle_requests=64,
    threads=1,
    peak_flops=1e12,
    negative_rate=0.5,
    optimizer=OptimizerConfig(dense_lr=3e-3, warmup_steps=2),
)


def losses(log: RequestLog, path: Path, *, resume: bool = False, stop_after: int | None = None) -> list[float]:
    found: list[float] = []

    class Killed(Exception):
        pass

    def step(progress: object) -> None:
        found.append(progress.loss)  # type: ignore[attr-defined]
        if len(found) == stop_after:
            raise Killed

    with contextlib.suppress(Killed):
        fit_run(CONFIG, log, path, Observer(step=step), resume=resume)
    return found


def test_a_mapped_log_trains_and_resumes_as_one_in_memory(
    log: RequestLog, log_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "BLOCK_REQUESTS", 16)
    monkeypatch.setattr("model.training.trainer.CHECKPOINT_EVERY_S", -1.0)
    mapped = map_request_log(log_directory, tmp_path / "cache")
    wanted = losses(log, tmp_path / "memory")
    cut = losses(mapped, tmp_path / "mapped", stop_after=len(wanted) // 2)  # the step that is killed has no checkpoint
    rest = losses(mapped, tmp_path / "mapped", resume=True)
    assert cut == wanted[: len(cut)]
    assert rest == wanted[len(cut) - 1 :]
    ours, theirs = (TrainingRun.open(tmp_path / name) for name in ("mapped", "memory"))
    for (name, a), (_, b) in zip(ours.load_model().state_dict().items(), theirs.load_model().state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert evaluate_run(ours, log, "test") == evaluate_run(theirs, mapped, "test")
