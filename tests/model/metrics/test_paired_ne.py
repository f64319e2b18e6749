"""The paired verdict: exact sums, and bounds that hold however often one looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from model.metrics.normalized_entropy import NEState
from model.metrics.paired_ne import LEAST_LISTS, PairedNE, Verdict, width

Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def impressions(rng: np.random.Generator, lists: int, noise: float = 0.2) -> Arrays:
    """Two models equally far from the truth, their labels, and the list of each impression."""
    sizes = rng.integers(1, 12, lists)
    number = np.repeat(np.arange(lists), sizes)
    logits = rng.normal(-2.5, 1.0, len(number)) + rng.normal(0, 0.5, lists)[number]
    labels = (rng.random(len(number)) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    live, canary = (1 / (1 + np.exp(-logits - rng.normal(0, noise, len(number)))) for _ in range(2))
    return live, canary, labels, number


def test_the_difference_is_that_of_the_two_ne(rng: np.random.Generator) -> None:
    live, canary, labels, lists = impressions(rng, 500)
    expected = NEState.of(canary, labels).normalized_entropy - NEState.of(live, labels).normalized_entropy
    assert PairedNE.of(live, canary, labels, lists).ne_difference().value == pytest.approx(expected, rel=1e-9)


def test_sums_add_up_in_any_order(rng: np.random.Generator) -> None:
    live, canary, labels, lists = impressions(rng, 300)
    whole = PairedNE.of(live, canary, labels, lists)
    parts = PairedNE()
    for chosen in np.array_split(rng.permutation(300), 7):
        rows = np.isin(lists, chosen)
        parts += PairedNE.of(live[rows], canary[rows], labels[rows], lists[rows])
    for name, value in vars(whole).items():
        assert getattr(parts, name) == pytest.approx(value, rel=1e-9), name


def test_a_model_is_never_better_or_worse_than_itself(rng: np.random.Generator) -> None:
    live, _, labels, lists = impressions(rng, 1000)
    found = PairedNE.of(live, live, labels, lists).ne_difference()
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.verdict is Verdict.UNDECIDED


def test_nothing_is_said_too_early(rng: np.random.Generator) -> None:
    live, _, labels, lists = impressions(rng, LEAST_LISTS - 1)
    found = PairedNE.of(live, np.full_like(live, 0.5), labels, lists).ne_difference()
    assert found.value > 0
    assert math.isnan(found.low)
    assert found.verdict is Verdict.UNDECIDED
    nothing = PairedNE.of(live[:5], live[:5], np.zeros(5), lists[:5]).ne_difference()
    assert math.isnan(nothing.value), "without a positive there is no NE"


def test_a_worse_and_a_better_canary_are_told_apart(rng: np.random.Generator) -> None:
    live, canary, labels, lists = impressions(rng, 4000)
    worse = np.clip(canary * 1.5, 0, 0.99)
    assert PairedNE.of(live, worse, labels, lists).ne_difference().verdict is Verdict.WORSE
    assert PairedNE.of(worse, live, labels, lists).ne_difference().verdict is Verdict.BETTER


def test_equal_models_are_hardly_ever_called_unequal_by_looking_often(rng: np.random.Generator) -> None:
    """Sequences of equal models, looked at after every 100 lists: the share with any false verdict stays below alpha."""
    false = 0
    for _ in range(100):
        total = PairedNE()
        for _ in range(40):
            total += PairedNE.of(*impressions(rng, 100))
            if total.ne_difference(alpha=0.1, tightest_at=2000).verdict is not Verdict.UNDECIDED:
                false += 1
                break
    assert false <= 10, f"{false} of 100 sequences at alpha 0.1"


def test_the_width_falls_to_its_best_where_it_is_told_to() -> None:
    fixed = [width(n, 0.05, 10_000) * math.sqrt(n) for n in (100, 1000, 10_000, 100_000, 1_000_000)]
    assert min(fixed) == fixed[2]
    assert 1.96 < fixed[2] < 3.5, "wider than an interval for one look, by the price of looking always"
