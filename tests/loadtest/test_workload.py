"""The drawn workload has the distributions it states, and is the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.openloop.workload import Workload, draw

SEEDS = (1, 2, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_arrivals_are_poisson(seed: int) -> None:
    plan = draw(Workload(rate=50, seconds=200, seed=seed))
    assert np.all(np.diff(plan.at) >= 0)
    assert 0 <= plan.at[0] <= plan.at[-1] <= 200
    counts = np.histogram(plan.at, bins=200, range=(0, 200))[0]
    assert counts.mean() == pytest.approx(50, abs=4 * np.sqrt(50 / 200))
    assert counts.var() == pytest.approx(50, rel=0.4), "a Poisson count's variance is its mean"


@pytest.mark.parametrize("seed", SEEDS)
def test_users_follow_zipf_and_candidates_a_bounded_heavy_tail(seed: int) -> None:
    workload = Workload(rate=500, seconds=60, seed=seed, users=100, user_zipf=1.0, candidates_mean=100, candidates_max=1000)
    plan = draw(workload)
    shares = np.bincount(plan.user, minlength=100) / len(plan)
    expected = 1 / np.arange(1, 101)
    expected /= expected.sum()
    np.testing.assert_allclose(shares[:10], expected[:10], rtol=0.15)
    assert plan.candidates.mean() == pytest.approx(100, rel=0.05)
    assert plan.candidates.min() >= 1
    assert plan.candidates.max() <= 1000
    assert np.median(plan.candidates) < 0.75 * plan.candidates.mean(), "heavy-tailed"
    items = plan.items(0, 2000)
    assert len(np.unique(items)) == len(items) == plan.candidates[0]


def test_shares_and_seeds() -> None:
    workload = Workload(
        rate=500, seconds=40, event_share=0.2, cancel_share=0.3, hurried_share=0.1, hurried_ms=20, deadline_ms=500
    )
    plan, again, other = draw(workload), draw(workload), draw(workload.model_copy(update={"seed": 9}))
    assert plan.event_after.mean() == pytest.approx(0.2, abs=0.02)
    assert (~np.isnan(plan.cancel_after_s)).mean() == pytest.approx(0.3, abs=0.02)
    assert (plan.deadline_s == 0.02).mean() == pytest.approx(0.1, abs=0.02)
    assert set(plan.deadline_s.tolist()) == {0.02, 0.5}
    assert np.nanmax(plan.cancel_after_s) <= workload.cancel_within_ms / 1e3
    np.testing.assert_array_equal(plan.at, again.at)
    np.testing.assert_array_equal(plan.candidates, again.candidates)
    assert not np.array_equal(plan.at[:100], other.at[:100])
