"""Histograms of scores against the exact figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from model.metrics.score_histogram import (
    BINS,
    histogram_auc,
    population_stability_index,
    rate_stability_index,
    score_bins,
    score_histogram,
)


def click_log(rng: np.random.Generator, size: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    p = 1 / (1 + np.exp(-rng.normal(-4 + shift, 1, size)))
    return p, rng.random(size) < p


def test_auc_of_rare_labels_is_near_the_exact_one(rng: np.random.Generator) -> None:
    p, y = click_log(rng, 50_000)
    found = histogram_auc(score_histogram(p), score_histogram(p[y]))
    assert found == pytest.approx(roc_auc_score(y, p), abs=1e-3)


def test_auc_of_ties_is_one_half() -> None:
    assert histogram_auc(score_histogram(np.full(10, 0.3)), score_histogram(np.full(4, 0.3))) == 0.5
    assert math.isnan(histogram_auc(np.zeros(BINS, int), np.zeros(BINS, int)))
    assert math.isnan(histogram_auc(score_histogram(np.full(3, 0.3)), score_histogram(np.full(3, 0.3))))


def test_bins_rise_with_the_prediction_and_hold_everything() -> None:
    p = np.concatenate([[0.0, 1e-30], np.linspace(1e-6, 1 - 1e-6, 1000), [1.0]])
    bins = score_bins(p)
    assert (np.diff(bins) >= 0).all()
    assert (bins[0], bins[-1]) == (0, BINS - 1)
    assert score_histogram(p).sum() == len(p)
    assert np.array_equal(score_histogram(p, np.full(len(p), 2.5)), np.rint(2.5 * score_histogram(p)))


def test_drift_is_seen_and_noise_is_not(rng: np.random.Generator) -> None:
    reference = score_histogram(click_log(rng, 50_000)[0])
    assert population_stability_index(reference, score_histogram(click_log(rng, 5_000)[0])) < 0.02
    # Two normals one deviation apart: the symmetric Kullback-Leibler divergence is 1.
    shifted = population_stability_index(reference, score_histogram(click_log(rng, 50_000, shift=1.0)[0]))
    assert 0.75 < shifted < 1.05
    assert math.isnan(population_stability_index(reference, np.zeros(BINS, int)))


def test_label_rates() -> None:
    assert rate_stability_index(0.1, 100, 1000) == 0
    expected = (0.2 - 0.1) * math.log(2) + (0.8 - 0.9) * math.log(0.8 / 0.9)
    assert rate_stability_index(0.1, 200, 1000) == pytest.approx(expected)
    assert math.isnan(rate_stability_index(0.1, 0, 0))
