"""Every architecture goes through the same loop, evaluation and export by naming it in a training configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.checks.baselines import ModelSettings, adapted
from loadtest.yardsticks.one_hot import fitted, one_hot
from model.data.request_log import RequestLog, load_request_log
from model.data.split import split_requests
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.export.writer import export_run
from model.features import FeatureEncoder
from model.metrics.normalized_entropy import NEState
from model.training.batches import BatchMaker
from model.training.config import parse_config
from model.training.evaluation import evaluate_run
from model.training.fit_features import fit_features
from model.training.fit_run import fit_run
from model.training.run import TrainingRun

NAMES = ("logistic_regression", "din", "dcn_v2", "wukong", "interformer", "hstu")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> RequestLog:
    torch.set_num_threads(1)
    directory = Path(tmp_path_factory.mktemp("log")) / "log"
    generate(SyntheticConfig(requests=300), directory, lambda _: None)
    return load_request_log(directory)


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_trains_and_is_measured_by_its_name(log: RequestLog, name: str, tmp_path: Path) -> None:
    config = parse_config(
        {"model": {"architecture": name}, "threads": 1, "device": "cpu", "batch_requests": 30, "epochs": 2, "max_seconds": 1}
    )
    result = fit_run(config, log, tmp_path / "run")
    assert result["steps"] > 0
    run = TrainingRun.open(tmp_path / "run")
    assert run.config.model.architecture == name
    figures = evaluate_run(run, log, "test")["click"]
    assert 0.3 < figures["ne"]["value"] < 3


@pytest.mark.slow
def test_a_baseline_is_exported_like_kunlun(log: RequestLog, tmp_path: Path) -> None:
    config = parse_config({"model": {"architecture": "din"}, "threads": 1, "device": "cpu", "epochs": 1, "max_seconds": 1})
    fit_run(config, log, tmp_path / "run")
    artifact = export_run(TrainingRun.open(tmp_path / "run"), tmp_path / "models", name="din", version="1")
    assert artifact.config == config.model
    assert {t.name for t in artifact.manifest.user_state} >= {"state_user", "state_click_keys"}


def test_logistic_regression_reaches_what_a_convex_solver_reaches(log: RequestLog, tmp_path: Path) -> None:
    log = adapted(log, ModelSettings(train={}, user_ids=True, table_width=1))
    config = parse_config(
        {
            "model": {"architecture": "logistic_regression"},
            "optimizer": {"dense_lr": 0.05, "sparse_lr": 0.3, "embedding_decay": 0.01, "warmup_steps": 1},
            "augment": {"empty_history": 0, "truncated_history": 0, "id_dropout": 0, "unknown_position": 1},
            "threads": 1, "device": "cpu", "batch_requests": 20, "epochs": 12,
        }
    )  # fmt: skip
    found = fit_run(config, log, tmp_path / "run")["best"]["validation_ne"]
    split = split_requests(log, "time")
    maker = BatchMaker(log, FeatureEncoder(log.schema, fit_features(log, split.train)))
    labels = [log.labels[log.rows_of(part), 0] for part in (split.train, split.validation)]
    solved = fitted(one_hot(maker, split.train), labels[0], c=0.3)
    probabilities = solved.predict_proba(one_hot(maker, split.validation))[:, 1]
    reference = NEState.of(probabilities, labels[1], np.ones(len(labels[1]))).normalized_entropy
    assert found < reference + 0.01
