"""NE as an additive state: A15."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.metrics.normalized_entropy import NEState


def test_a15_predicting_the_base_rate_gives_exactly_one(rng: np.random.Generator) -> None:
    labels = rng.random(1000) < 0.2
    assert NEState.of(np.full(1000, labels.mean()), labels).normalized_entropy == pytest.approx(1.0, abs=1e-12)


def test_a15_relative_gain_is_that_of_the_log_loss(rng: np.random.Generator) -> None:
    labels = rng.random(5000) < 0.3
    a, b = (np.clip(0.3 + 0.4 * (labels - 0.3) * w + 0.05 * rng.standard_normal(5000), 0.01, 0.99) for w in (0.3, 0.6))
    first, second = NEState.of(a, labels), NEState.of(b, labels)
    gain = (first.normalized_entropy - second.normalized_entropy) / first.normalized_entropy
    assert gain == pytest.approx((first.log_loss - second.log_loss) / first.log_loss, rel=1e-12)


def test_log_loss_is_the_usual_one(rng: np.random.Generator) -> None:
    labels, p = rng.random(200) < 0.4, rng.uniform(0.01, 0.99, 200)
    want = -np.mean(np.where(labels, np.log(p), np.log1p(-p)))
    assert NEState.of(p, labels).log_loss == pytest.approx(want, rel=1e-12)


def test_an_example_of_weight_three_is_three_examples(rng: np.random.Generator) -> None:
    labels, p, weights = rng.random(200) < 0.4, rng.uniform(0.01, 0.99, 200), rng.integers(1, 4, 200)
    found, wanted = NEState.of(p, labels, weights), NEState.of(np.repeat(p, weights), np.repeat(labels, weights))
    assert (found.examples, found.positives) == (wanted.examples, wanted.positives)
    assert found.normalized_entropy == pytest.approx(wanted.normalized_entropy, rel=1e-12)
    assert found.calibration == pytest.approx(wanted.calibration, rel=1e-12)


def test_late_positives_and_merged_parts_give_the_same_sums(rng: np.random.Generator) -> None:
    labels, p = rng.random(300) < 0.4, rng.uniform(0.01, 0.99, 300)
    parts = [NEState.of_impressions(p[:100]), NEState.of_impressions(p[100:]), NEState.of_positives(p[labels])]
    merged = parts[2] + parts[0] + parts[1]
    whole = NEState.of(p, labels)
    assert merged.normalized_entropy == pytest.approx(whole.normalized_entropy, rel=1e-12)
    assert math.isnan(NEState().normalized_entropy)
