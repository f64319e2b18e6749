"""Figures and their bootstrap intervals agree with direct recomputation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from model.data.request_log import RequestLog, load_request_log
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.metrics.bootstrap import resampled_auc, resamples
from model.metrics.evaluate import evaluate_predictions, task_draws
from model.metrics.normalized_entropy import NEState


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> RequestLog:
    directory = tmp_path_factory.mktemp("evaluate") / "log"
    generate(SyntheticConfig(seed=1, requests=800, users=60, items=100), directory)
    return load_request_log(directory)


def test_values_agree_with_sklearn_and_the_ne_state(log: RequestLog, rng: np.random.Generator) -> None:
    assert log.truth is not None
    p = np.clip(np.round(log.truth + 0.05 * rng.standard_normal(log.truth.shape), 2), 0.01, 0.99)
    figures = evaluate_predictions(p, log, count=50)["click"]
    labels = log.labels[:, 0]
    state = NEState.of(p[:, 0], labels)
    assert figures["examples"] == len(labels)
    assert figures["requests"] == 800
    assert figures["ne"]["value"] == pytest.approx(state.normalized_entropy, abs=1e-9)
    assert figures["calibration"]["value"] == pytest.approx(state.calibration, abs=1e-6)
    assert figures["log_loss"]["value"] == pytest.approx(log_loss(labels, p[:, 0].astype(np.float64)), abs=1e-6)
    assert figures["auc"]["value"] == pytest.approx(roc_auc_score(labels, p[:, 0]), abs=1e-9)
    assert figures["ne_bayes"]["value"] < figures["ne"]["value"]
    for name in ("ne", "auc", "gauc", "ndcg10", "calibration", "ece", "base_rate", "log_loss", "ne_bayes"):
        assert figures[name]["low"] <= figures[name]["high"]


def test_a_resample_is_the_log_with_users_repeated(log: RequestLog, rng: np.random.Generator) -> None:
    p = rng.random(len(log.item_index))
    drawn = task_draws(p, log, count=3, seed=9)
    present = np.unique(log.user_index)
    weights = resamples(len(present), 3, 9)
    for row in range(3):
        own = [np.flatnonzero(log.user_index == user) for user in np.repeat(present, weights[row].astype(int))]
        requests = np.concatenate(own)
        rows = np.concatenate([np.arange(log.offsets[r], log.offsets[r + 1]) for r in requests])
        direct = task_draws(p[rows], log.subset(requests), count=2)
        for name in ("ne", "auc", "ndcg10", "calibration", "base_rate", "log_loss"):
            assert drawn.draws[name][row] == pytest.approx(direct.values[name], abs=1e-9), name


def test_weighted_auc_agrees_with_sklearn_for_ties(rng: np.random.Generator) -> None:
    users, labels, scores = rng.integers(0, 30, 900), rng.integers(0, 2, 900), np.round(rng.random(900), 1)
    weights = resamples(30, 5)
    for row, found in zip(weights, resampled_auc(scores, labels, users, weights), strict=True):
        assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=row[users]), abs=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say(rng: np.random.Generator) -> None:
    covered, trials = 0, 200
    for trial in range(trials):
        users = 80
        means = rng.beta(2, 8, users)  # users differ, so impressions of a user are not independent
        clicks = rng.binomial(20, means)
        rates = resamples(users, 200, trial) @ clicks / (20 * users)
        low, high = np.quantile(rates, [0.025, 0.975])
        covered += low <= 0.2 <= high
    assert 0.88 <= covered / trials <= 0.99


def test_a_down_sampled_log_is_measured_as_if_every_item_that_is_gone_were_there(
    log: RequestLog, rng: np.random.Generator
) -> None:
    p = np.round(rng.random((len(log.item_index), 1)), 2)
    copies = np.where(log.negatives(), 4, 1)  # what a log of rate 1/4 stands for: three more of each all-zero item
    rows = np.repeat(np.arange(len(copies)), copies)
    whole = replace(
        log,
        offsets=np.concatenate([[0], np.cumsum(copies)])[log.offsets],
        item_index=log.item_index[rows],
        labels=log.labels[rows],
        truth=None if log.truth is None else log.truth[rows],
    )
    found = evaluate_predictions(p, replace(log, negative_rate=0.25), count=20)["click"]
    wanted = evaluate_predictions(p[rows], whole, count=20)["click"]
    assert found["examples"] == len(log.item_index)
    for name in ("ne", "auc", "gauc", "calibration", "ece", "base_rate", "log_loss", "ne_bayes"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-9), name
    assert "ndcg10" not in found  # the lists that were shown are not known


def test_unknown_labels_are_left_out(log: RequestLog) -> None:
    part = log.subset(np.arange(50))
    part.labels[:10] = np.nan
    figures = evaluate_predictions(np.full((len(part.item_index), 1), 0.2), part, count=20)["click"]
    assert figures["examples"] == len(part.item_index) - 10
    assert figures["auc"]["value"] == pytest.approx(0.5)


def test_figures_that_are_not_defined_are_left_out(log: RequestLog) -> None:
    part = log.subset(np.arange(5))
    part.labels[:] = 0
    figures = evaluate_predictions(np.full((len(part.item_index), 1), 0.2), part, count=20)["click"]
    assert {"auc", "gauc", "ndcg10", "ne", "calibration"}.isdisjoint(figures)
    assert figures["base_rate"]["value"] == 0


def test_a_wrong_number_of_predictions_is_refused(log: RequestLog) -> None:
    with pytest.raises(ValueError, match="expected one row per shown item"):
        evaluate_predictions(np.zeros((3, 1)), log)


def test_evaluation_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, model.metrics.evaluate, model.data.metarank, model.data.synthetic, model.data.split, model.cli.prepare;"
    subprocess.run([sys.executable, "-c", code + " assert 'torch' not in sys.modules"], check=True, cwd=tmp_path)
