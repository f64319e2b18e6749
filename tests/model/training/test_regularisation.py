"""What keeps small data from being memorised: lazy decay, averages and dropout against their formulas, and in a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.data.split import split_requests
from model.features import GroupLayout, Slot
from model.layers.dropout import HiddenDropout, set_hidden_dropout
from model.layers.embedding import EmbeddingTables, InputDropout
from model.training.averaging import WeightAverage
from model.training.config import AugmentConfig, EmbeddingDecay, OptimizerConfig, TrainConfig
from model.training.fit_features import fit_features
from model.training.rowwise_adagrad import RowWiseAdagrad
from model.training.run import BEST, CHECKPOINT, TrainingRun
from model.training.trainer import Trainer
from tests.model.training.conftest import Losses

CONFIG = TrainConfig(model="tiny", batch_requests=40, threads=1, optimizer=OptimizerConfig(dense_lr=3e-3, warmup_steps=2))
EVERYTHING = CONFIG.model_copy(
    update={
        "epochs": 2,
        "optimizer": OptimizerConfig(
            dense_lr=3e-3,
            warmup_steps=2,
            table_lr={"item": 0.02},
            embedding_decay=0.5,
            table_decay={"segment": 0.0},
            average_decay=0.9,
        ),
        "augment": AugmentConfig(table_id_dropout={"item": 0.3}, embedding_dropout=0.1, hidden_dropout=0.1),
    }
)


def touch(table: nn.Parameter, rows: list[int], weight: float = 1.0) -> None:
    """Gradients `weight` in every column of the given rows."""
    table.grad = None
    (F.embedding(torch.tensor(rows), table, sparse=True) * weight).sum().backward()


def test_decay_per_step_equals_decay_of_the_whole_table() -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(4, 3))
    lazy = RowWiseAdagrad([{"params": [table], "lr": 0.1, "weight_decay": 0.2}])
    want = table.detach().clone()
    for rows in ([0, 1], [1], [1, 2], [0]):
        touch(table, rows, 0.0)
        lazy.step()
        want *= math.exp(-0.1 * 0.2)
    torch.testing.assert_close(table.detach()[0], want[0])  # touched first and last: the steps between are made up for
    late = want / math.exp(-0.1 * 0.2)
    torch.testing.assert_close(table.detach()[1:3], late[1:3])  # up to date until their last update
    assert lazy.state[table]["touched"].tolist() == [4, 3, 3, 0]


def test_decay_per_touch_counts_updates_and_leaves_other_rows_alone() -> None:
    table = nn.Parameter(torch.ones(3, 2))
    optimizer = RowWiseAdagrad([table], lr=0.1, weight_decay=0.2, decay=EmbeddingDecay.PER_TOUCH)
    for rows in ([0], [1], [0]):
        touch(table, rows, 0.0)
        optimizer.step()
    torch.testing.assert_close(table.detach()[:, 0], torch.tensor([math.exp(-0.04), math.exp(-0.02), 1.0]))


def averaged(history: list[Tensor], decay: float) -> Tensor:
    """The formula, over weights at the start and after every step."""
    average = history[0].clone()
    for t, w in enumerate(history[1:]):
        d = min(decay, (1 + t) / (10 + t))
        average = average + (1 - d) * (w - average)
    return average


def test_averages_of_untouched_rows_are_caught_up_with_exactly() -> None:
    torch.manual_seed(0)
    table, dense = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(3))
    average = WeightAverage({"w": dense}, {"t": table}, decay=0.6)
    optimizer = torch.optim.SGD([table, dense], lr=0.3)
    tables, denses = [table.detach().clone()], [dense.detach().clone()]
    for step, rows in enumerate([[0, 1, 1], [2], [0], [2, 3], [2]]):
        if step == 2:  # a checkpoint in between
            kept = {name: {k: v.clone() for k, v in group.items()} for name, group in average.tensors().items()}
            average = WeightAverage({"w": dense}, {"t": table}, decay=0.6)
            average.restore(kept)
        touch(table, rows, float(step + 1))
        dense.grad = torch.full_like(dense, 0.1)
        average.before_step()
        optimizer.step()
        average.after_step()
        tables.append(table.detach().clone())
        denses.append(dense.detach().clone())
    with average.swapped_in():
        torch.testing.assert_close(table.detach(), averaged(tables, 0.6))
        torch.testing.assert_close(dense.detach(), averaged(denses, 0.6))
    assert torch.equal(table.detach(), tables[-1])
    assert torch.equal(dense.detach(), denses[-1])


def test_ids_are_hidden_by_table_and_columns_dropped() -> None:
    tables = EmbeddingTables({"a": 3, "b": 3}, {"a": 4, "b": 4})
    layout = GroupLayout("item", (Slot("x", "a", 4), Slot("y", "b", 4)), ())
    rows = torch.tensor([[1, 2]]).repeat(500, 1)
    hidden = tables.gather(layout, rows, InputDropout({"a": 1.0, "b": 0.0}))
    assert torch.equal(hidden, torch.cat([tables.weight("a")[0], tables.weight("b")[2]]).expand(500, -1))
    torch.manual_seed(0)
    dropped = tables.gather(layout, rows, InputDropout({"a": 0.0, "b": 0.0}, columns=0.25))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(dropped.mean(0), tables.gather(layout, rows)[0], atol=0.05, rtol=0.1)


def test_hidden_dropout_acts_in_training_only() -> None:
    model = nn.Sequential(nn.Identity(), HiddenDropout())
    x = torch.ones(1000)
    assert torch.equal(model.train()(x), x)
    assert set_hidden_dropout(model, 0.5) == 1
    assert (model.train()(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert torch.equal(model.eval()(x), x)


def test_a_run_with_everything_on_resumes_exactly_and_keeps_the_averages(losses: Losses, tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", EVERYTHING)
    assert losses(tmp_path / "cut", EVERYTHING, stop_after=11) + losses(tmp_path / "cut", EVERYTHING) == whole
    assert np.mean(whole[-4:]) < whole[0] - 0.03
    run, again = TrainingRun.open(tmp_path / "whole"), TrainingRun.open(tmp_path / "cut")
    for which in (BEST, CHECKPOINT):
        for name, group in run.load(which)[1].items():
            for key, tensor in group.items():
                assert torch.equal(tensor, again.load(which)[1][name][key]), (which, name, key)
    assert not torch.equal(run.load(BEST)[1]["position"]["table"], run.load(CHECKPOINT)[1]["position"]["table"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer": {"table_lr": {"nope": 0.1}}},
            r"optimizer.table_lr: expected names of embedding tables \(.*item.*\), found",
        ),
        ({"optimizer": {"table_decay": {"nope": 0.1}}}, "optimizer.table_decay: expected names"),
        ({"augment": {"table_id_dropout": {"nope": 0.1}}}, "augment.table_id_dropout: expected names"),
    ],
)
def test_tables_that_are_not_there_are_named(log: RequestLog, tmp_path: Path, change: dict[str, object], message: str) -> None:
    config = TrainConfig.model_validate(CONFIG.model_dump() | change)
    split = split_requests(log, config.split.value)
    run = TrainingRun.create(tmp_path / "run", config, log.schema, fit_features(log, split.train))
    with pytest.raises(ConfigError, match=message):
        Trainer(run, log, split.train, split.validation)
