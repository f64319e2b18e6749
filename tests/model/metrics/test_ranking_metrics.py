"""Ranking figures agree with scikit-learn where it has them, and with their definitions where it has not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from model.metrics.ranking import calibration_bins, grouped_auc, ndcg_per_request


@pytest.mark.parametrize("levels", [3, 50, 10_000])
def test_auc_agrees_with_sklearn_for_any_number_of_ties(rng: np.random.Generator, levels: int) -> None:
    labels = rng.integers(0, 2, 2_000)
    scores = (rng.random(2_000) + 0.2 * labels) * levels // 1 / levels
    found = grouped_auc(scores, labels, np.zeros(2_000, np.int64), 1)
    assert found == pytest.approx([roc_auc_score(labels, scores)], abs=1e-12)


def test_weighted_auc_of_groups_agrees_with_sklearn(rng: np.random.Generator) -> None:
    groups, labels, weights = rng.integers(0, 5, 800), rng.integers(0, 2, 800), rng.integers(1, 9, 800)
    scores = np.round(rng.random(800), 1)
    for group, found in enumerate(grouped_auc(scores, labels, groups, 5, weights)):
        own = groups == group
        wanted = roc_auc_score(labels[own], scores[own], sample_weight=weights[own])
        assert found == pytest.approx(wanted, abs=1e-12)


def test_auc_of_one_class_is_undefined() -> None:
    assert math.isnan(grouped_auc(np.array([0.1, 0.2]), np.array([1, 1]), np.zeros(2, np.int64), 1)[0])


@pytest.mark.parametrize("decimals", [1, 8])
def test_ndcg_agrees_with_sklearn_also_for_ties(rng: np.random.Generator, decimals: int) -> None:
    lengths = rng.integers(2, 30, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = (rng.random(offsets[-1]) < 0.3).astype(float)
    scores = np.round(rng.random(offsets[-1]), decimals)
    found = ndcg_per_request(scores, labels, offsets, 10)
    for request in range(60):
        rows = slice(offsets[request], offsets[request + 1])
        if labels[rows].sum():
            assert found[request] == pytest.approx(ndcg_score([labels[rows]], [scores[rows]], k=10), abs=1e-12)
        else:
            assert math.isnan(found[request])


def test_calibration_bins_hold_equally_many_and_keep_equal_predictions_together(rng: np.random.Generator) -> None:
    counts = np.bincount(calibration_bins(rng.random(1_000), 20))
    assert counts.tolist() == [50] * 20
    assert len(set(calibration_bins(np.full(100, 0.3), 20).tolist())) == 1
