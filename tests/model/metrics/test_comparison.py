"""Paired gains: sharper than the figures, covering zero for equal models, and wider once seeds differ."""

from __future__ import annotations

import numpy as np
import pytest

from model.metrics.bootstrap import resamples
from model.metrics.comparison import gains_by_slice, relative_gain
from model.metrics.evaluate import TaskDraws
from model.metrics.evaluation_state import EvaluationState

USERS = 200


def _draws(noise: float, seed: int, count: int = 400) -> TaskDraws:
    """A model whose log-odds are the truth plus noise, on the same users and labels whatever its seed."""
    world = np.random.default_rng(7)
    truth = 1 / (1 + np.exp(-world.normal(-1.5, 1.2, USERS * 20)))
    labels = (world.random(len(truth)) < truth).astype(float)
    logit = np.log(truth / (1 - truth)) + noise * np.random.default_rng([1, seed]).standard_normal(len(truth))
    state = EvaluationState.of(1 / (1 + np.exp(-logit)), labels, np.arange(USERS), np.arange(USERS + 1) * 20)
    drawn = np.concatenate([np.ones((1, USERS)), resamples(USERS, count)])
    figures = state.figures(drawn)
    return TaskDraws({n: float(v[0]) for n, v in figures.items()}, {n: v[1:] for n, v in figures.items()}, 1, 1, 1)


def test_gain_is_the_relative_difference_of_ne_and_its_sign_says_better() -> None:
    good, bad = _draws(0.3, 0), _draws(0.9, 1)
    gain = relative_gain([good], [bad])
    assert gain.value == pytest.approx(100 * (bad.values["ne"] - good.values["ne"]) / bad.values["ne"], abs=1e-12)
    assert 0 < gain.low < gain.value < gain.high
    assert relative_gain([bad], [good]).high < 0


def test_pairing_over_users_is_sharper_than_two_intervals() -> None:
    a, b = _draws(0.3, 0), _draws(0.35, 1)
    gain, own = relative_gain([a], [b]), a.intervals()["ne"]
    assert gain.high - gain.low < 0.5 * 100 * (own.high - own.low) / own.value


def test_a_model_gains_nothing_over_itself() -> None:
    gain = relative_gain([_draws(0.3, 0)], [_draws(0.3, 0)])
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_seeds_that_differ_widen_the_interval() -> None:
    steady = [_draws(0.5, seed) for seed in range(3)]
    loose = [_draws(noise, seed) for seed, noise in enumerate((0.2, 0.5, 0.8))]
    base = [_draws(0.5, 9)]
    narrow, wide = relative_gain(steady, base), relative_gain(loose, base)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_slices_without_an_ne_on_either_side_are_left_out() -> None:
    a, b = _draws(0.3, 0), _draws(0.5, 1)
    nothing = TaskDraws({}, {}, 0, 0, 0)
    assert set(gains_by_slice([{"*": a, "surface=x": a}], [{"*": b, "surface=x": nothing}])) == {"*"}
