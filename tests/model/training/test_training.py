"""Training: learns, is deterministic, resumes exactly; row-wise Adagrad and calibration against their formulas."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional as F

from model.artifact import Calibration
from model.config import ConfigError
from model.data.request_log import RequestLog
from model.data.split import split_requests
from model.features import FeatureEncoder
from model.hashing import string_keys
from model.training.batches import BatchMaker
from model.training.calibration import fit_platt
from model.training.config import AugmentConfig, OptimizerConfig, TrainConfig
from model.training.evaluation import evaluate_run
from model.training.fit_features import fit_features
from model.training.forward import PositionBias, masked_bce
from model.training.rowwise_adagrad import RowWiseAdagrad
from model.training.run import CHECKPOINT, TrainingRun, read_json, write_json
from model.training.trainer import Trainer
from model.training.validation import mean_ne

CONFIG = TrainConfig(
    model="tiny", epochs=2, batch_requests=40, threads=1, optimizer=OptimizerConfig(dense_lr=3e-3, warmup_steps=2)
)


def trained(
    log: RequestLog, path: Path, config: TrainConfig = CONFIG, stop_after: int | None = None
) -> tuple[Trainer, list[float]]:
    """A trainer after training (or after `stop_after` steps and a checkpoint), and the loss of every step."""
    split = split_requests(log, config.split.value)
    run = TrainingRun.create(path, config, log.schema, fit_features(log, split.train))
    trainer = Trainer(run, log, split.train, split.validation)
    losses: list[float] = []

    class Stop(Exception):
        pass

    def report(progress: Any) -> None:
        losses.append(progress.loss)
        if progress.step == stop_after:
            trainer._checkpoint()
            raise Stop

    with contextlib.suppress(Stop):
        trainer.fit(report, lambda _: None)
    return trainer, losses


def test_training_learns_and_leaves_everything_that_serving_needs(log: RequestLog, tmp_path: Path) -> None:
    trainer, losses = trained(log, tmp_path / "run")
    assert np.mean(losses[-4:]) < losses[0] - 0.05
    run = TrainingRun.open(tmp_path / "run")
    assert run.result["stopped"] == "epochs"
    assert run.result["calibration"].keys() == {"click"}
    prior = load_file(run.path / "prior.safetensors")
    assert np.all(np.diff(prior["keys"]) > 0)
    assert prior["rates"].shape == (len(prior["keys"]), 1)
    restored = run.load_model()
    for (name, a), (_, b) in zip(trainer.learner.model.state_dict().items(), restored.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_the_same_seed_gives_the_same_run_and_another_seed_another(log: RequestLog, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 1})
    _, first = trained(log, tmp_path / "a", config)
    _, second = trained(log, tmp_path / "b", config)
    _, other = trained(log, tmp_path / "c", config.model_copy(update={"seed": 1}))
    assert first == second
    assert first != other


def test_a_resumed_run_continues_with_the_same_losses(log: RequestLog, tmp_path: Path) -> None:
    whole, losses = trained(log, tmp_path / "whole")
    trained(log, tmp_path / "cut", stop_after=11)
    split = split_requests(log, CONFIG.split.value)
    resumed = Trainer(TrainingRun.open(tmp_path / "cut"), log, split.train, split.validation)
    resumed.resume()
    rest: list[float] = []
    resumed.fit(lambda p: rest.append(p.loss), lambda _: None)
    assert rest == losses[11:]
    ours, wanted = (trainer.learner.model.state_dict() for trainer in (resumed, whole))
    for (name, a), (_, b) in zip(ours.items(), wanted.items(), strict=True):
        assert torch.equal(a, b), name
    assert (tmp_path / "cut" / CHECKPOINT / "state.json").is_file()


def test_statistics_come_from_the_training_part_alone(log: RequestLog) -> None:
    split = split_requests(log, "time")
    held_out = np.concatenate([split.validation, split.test])
    rows, end = log.rows_of(held_out), log.time_ms[split.train].max()
    items, contexts, events = log.item_index.copy(), log.contexts.copy(), {}
    items[rows] = len(log.item_keys)  # an item that nobody knows
    contexts["surface"][held_out] = 12_345
    for name, arrivals in log.events.items():
        records = arrivals.records.copy()
        records["category"][records["arrival_ms"] >= end] = 12_345
        events[name] = replace(arrivals, records=records)
    other = replace(
        log, item_keys=np.append(log.item_keys, 12_345), items=np.append(log.items, log.items[:1]), item_index=items,
        contexts=contexts, events=events,
    )  # fmt: skip
    stats, same, leaked = fit_features(log, split.train), fit_features(other, split.train), fit_features(other, np.arange(400))
    assert same.moments == stats.moments != leaked.moments
    assert same.boundaries == stats.boundaries
    for table, keys in stats.vocabularies.items():
        assert np.array_equal(same.vocabularies[table], keys), table
    found = {table for table, keys in leaked.vocabularies.items() if 12_345 in keys}
    assert found == {"item", "surface", "category"}, "each of the three can be told"


def test_a_batch_holds_the_user_side_once_per_request(log: RequestLog) -> None:
    split = split_requests(log, "time")
    maker = BatchMaker(log, FeatureEncoder(log.schema, fit_features(log, split.train)))
    batch = maker.batch(split.test[:5])
    assert batch.requests == 5
    assert batch.candidates == sum(log.shown(r).stop - log.shown(r).start for r in split.test[:5])
    assert batch.request_index.bincount().tolist() == [log.shown(r).stop - log.shown(r).start for r in split.test[:5]]
    hidden = maker.batch(split.test[:5], AugmentConfig(empty_history=1.0, unknown_position=1.0), np.random.default_rng(0))
    assert all(h.lengths.sum() == 0 for h in hidden.histories.values())
    assert hidden.positions.sum() == 0


def test_rowwise_adagrad_follows_its_formula_and_leaves_other_rows_alone() -> None:
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(6, 3))
    start, sums = table.detach().clone(), torch.zeros(6)
    optimizer = RowWiseAdagrad([table], lr=0.1)
    want = start.clone()
    for rows in ([1, 1, 4], [4]):
        weight = torch.randn(len(rows), 3)
        optimizer.zero_grad()
        (F.embedding(torch.tensor(rows), table, sparse=True) * weight).sum().backward()
        optimizer.step()
        dense = torch.zeros(6, 3).index_add_(0, torch.tensor(rows), weight)
        sums += dense.square().mean(-1)
        touched = dense.abs().sum(-1) > 0
        want[touched] -= 0.1 * dense[touched] / (sums[touched].sqrt() + 1e-8).unsqueeze(-1)
    torch.testing.assert_close(table.detach(), want)
    assert torch.equal(table.detach()[[0, 2, 3, 5]], start[[0, 2, 3, 5]])


def test_unknown_labels_do_not_count() -> None:
    logits = torch.tensor([[0.3, 1.0], [-2.0, 0.0]])
    labels = torch.tensor([[1.0, float("nan")], [float("nan"), 0.0]])
    got = masked_bce(logits, labels, torch.tensor([1.0, 0.5]))
    want = F.softplus(torch.tensor(-0.3)) + 0.5 * F.softplus(torch.tensor(0.0))
    torch.testing.assert_close(got, want)


def test_an_unknown_position_adds_nothing() -> None:
    bias = PositionBias(1)
    with torch.no_grad():
        bias.table.fill_(3.0)
    assert bias(torch.tensor([0, 5])).flatten().tolist() == [0.0, 3.0]


def test_platt_recovers_the_line_that_made_the_labels(rng: np.random.Generator) -> None:
    x = rng.standard_normal(40_000).astype(np.float32) * 2
    y = (rng.random(40_000) < 1 / (1 + np.exp(-(0.7 * x - 1.2)))).astype(np.float32)
    fitted = fit_platt(x, y)
    assert fitted.scale == pytest.approx(0.7, abs=0.03)
    assert fitted.shift == pytest.approx(-1.2, abs=0.05)
    assert fit_platt(x, np.ones_like(y)) == Calibration()


@pytest.mark.parametrize("over", [0.2, 1.5, 2.5, 8.0, 30.0])
@pytest.mark.parametrize("shift", [-3.0, -1.0, 0.0])
def test_platt_undoes_over_confidence_without_diverging(rng: np.random.Generator, over: float, shift: float) -> None:
    z = 1.2 * rng.standard_normal(40_000) + shift
    y = (rng.random(40_000) < 1 / (1 + np.exp(-z))).astype(np.float32)
    fitted = fit_platt((over * z).astype(np.float32), y)
    assert fitted.scale * over == pytest.approx(1.0, abs=0.06)
    assert fitted.shift == pytest.approx(0.0, abs=0.12)


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a training run \(no config.json\)"):
        TrainingRun.open(tmp_path)


def test_user_keys_follow_the_declared_hash(log: RequestLog) -> None:
    assert log.user_keys.tolist() == string_keys(log.user_ids, log.schema.hash).tolist()


def test_a_run_never_replaces_a_directory_that_is_none(log: RequestLog, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not a training run; give another --output"):
        TrainingRun.create(tmp_path, CONFIG, log.schema, fit_features(log, np.arange(50)))
    assert (tmp_path / "holiday.jpg").read_text() == "precious"


def test_a_run_knows_the_log_it_was_trained_on(log: RequestLog, tmp_path: Path) -> None:
    run = TrainingRun.create(tmp_path / "run", CONFIG, log.schema, fit_features(log, np.arange(50)))
    run.remember_data(log)
    run.check_data(log)
    with pytest.raises(ConfigError, match=r"trained on a log of 400 requests.*the given one has 399"):
        run.check_data(log.subset(np.arange(399)))
    with pytest.raises(ConfigError, match=r"with another content or schema"):
        run.check_data(replace(log, labels=1 - log.labels))
    data = run.path / "data.json"
    data.write_text(json.dumps({k: v for k, v in json.loads(data.read_text()).items() if k != "content"}))
    run.check_data(log)
    data.unlink()
    with pytest.raises(ConfigError, match=r"no data\.json: it ended before training began; train again without --resume"):
        run.check_data(log)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"steps": 1})
    (tmp_path / ".result.json.tmp").mkdir()  # as good as a full disk
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "result.json", {"steps": 2})
    assert read_json(tmp_path / "result.json") == {"steps": 1}


def test_a_kill_while_saving_leaves_the_older_checkpoint(log: RequestLog, tmp_path: Path) -> None:
    run = TrainingRun.create(tmp_path / "run", CONFIG, log.schema, fit_features(log, np.arange(50)))
    run.save(CHECKPOINT, {"step": 1}, {"model": {"w": torch.ones(2)}})
    (run.path / CHECKPOINT).rename(run.path / f".{CHECKPOINT}.old")  # between the two renames
    state, groups = run.load(CHECKPOINT)
    assert state == {"step": 1}
    assert groups["model"]["w"].tolist() == [1.0, 1.0]


def test_a_task_without_both_classes_does_not_decide_the_best_step() -> None:
    logits = np.array([[0.5, 1.0], [-0.5, 2.0], [0.1, 0.0]], dtype=np.float32)
    labels = np.array([[1, 0], [0, 0], [1, 0]], dtype=np.float32)
    weights, rates = np.ones(3), np.ones(2)
    assert np.isfinite(mean_ne(logits, labels, weights, rates))
    assert np.isfinite(mean_ne(logits[:, 1:], labels[:, 1:], weights, rates))


def test_an_empty_validation_part_is_refused_before_training(log: RequestLog, tmp_path: Path) -> None:
    run = TrainingRun.create(tmp_path / "run", CONFIG, log.schema, fit_features(log, np.arange(50)))
    with pytest.raises(ConfigError, match="the validation part is empty"):
        Trainer(run, log, np.arange(50), np.arange(0))


def test_evaluation_is_position_free_with_the_other_figure_beside_it(log: RequestLog, tmp_path: Path) -> None:
    trainer, _ = trained(log, tmp_path / "run", CONFIG.model_copy(update={"epochs": 1}))
    trainer.run.remember_data(log)
    figures = evaluate_run(trainer.run, log, "test")["click"]
    assert 0.5 < figures["ne"]["value"] < 1.5
    assert 0.5 < figures["ne_with_position"] < 1.5
    assert figures["ne_with_position"] != figures["ne"]["value"]


def test_an_unfinished_run_is_not_measured(log: RequestLog, tmp_path: Path) -> None:
    trainer, _ = trained(log, tmp_path / "run", stop_after=2)
    with pytest.raises(ConfigError, match="training has not ended"):
        evaluate_run(trainer.run, log, "test")
