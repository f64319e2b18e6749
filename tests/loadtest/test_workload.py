"""What a load test sends follows the laws that `Workload` states. Bounds are five standard errors wide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError

from loadtest.openloop.workload import Plan, Workload, draw, of_length

COUNT = 50_000


@pytest.fixture
def seed(rng: np.random.Generator) -> int:
    """Of the drawn workload, printed."""
    drawn = int(rng.integers(2**31))
    print(f"workload seed {drawn}")
    return drawn


def many(seed: int, **changes: object) -> Plan:
    """About `COUNT` requests."""
    return draw(Workload.model_validate({"rate": COUNT / 100, "seconds": 100, "seed": seed} | changes))


def arrays(plan: Plan) -> dict[str, np.ndarray]:
    return {f.name: np.asarray(getattr(plan, f.name)) for f in dataclasses.fields(plan)}


def assert_share(hits: np.ndarray, expected: float) -> None:
    error = np.sqrt(expected * (1 - expected) / len(hits))
    assert hits.mean() == pytest.approx(expected, abs=5 * error)


def test_a_plan_is_a_function_of_its_workload(seed: int) -> None:
    workload = Workload(rate=200, seconds=5, seed=seed, cancel_share=0.5, hurried_share=0.5, event_share=0.5)
    first, again = draw(workload), draw(workload)
    for name, values in arrays(first).items():
        np.testing.assert_array_equal(values, arrays(again)[name])
    np.testing.assert_array_equal(first.items(3, 2000), again.items(3, 2000))
    other = draw(workload.model_copy(update={"seed": seed + 1}))
    assert not np.array_equal(first.at[:100], other.at[:100])
    assert not np.array_equal(first.user[:100], other.user[:100])
    assert not np.array_equal(np.sort(first.items(3, 2000)), np.sort(other.items(3, 2000)))


def test_arrivals_are_a_poisson_process(seed: int) -> None:
    rate, seconds = 100.0, 500
    at = draw(Workload(rate=rate, seconds=seconds, seed=seed)).at
    assert (np.diff(at) >= 0).all()
    assert at[0] >= 0
    assert at[-1] < seconds
    counts = np.bincount(at.astype(int), minlength=seconds)
    assert counts.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate / seconds))
    assert counts.var(ddof=1) / counts.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / (seconds - 1)))
    neighbours = np.corrcoef(counts[:-1], counts[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(seconds)
    gaps = np.diff(at)
    assert_share(gaps > 1 / rate, float(np.exp(-1)))
    assert_share(gaps > 3 / rate, float(np.exp(-3)))


def test_the_number_of_arrivals_varies_like_poisson_counts(seed: int) -> None:
    counts = np.array([len(draw(Workload(rate=50, seconds=2, seed=seed + n))) for n in range(300)])
    assert counts.mean() == pytest.approx(100, abs=5 * np.sqrt(100 / 300))
    assert counts.var(ddof=1) / 100 == pytest.approx(1.0, abs=5 * np.sqrt(2 / 299))


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.3])
def test_users_follow_zipfs_law(seed: int, exponent: float) -> None:
    users = 100
    plan = many(seed, users=users, user_zipf=exponent)
    weights = np.arange(1, users + 1) ** -exponent
    expected = weights / weights.sum() * len(plan)
    found = np.bincount(plan.user, minlength=users)
    assert len(found) == users
    chi_square = float(((found - expected) ** 2 / expected).sum())
    assert chi_square < users - 1 + 5 * np.sqrt(2 * (users - 1))


@pytest.mark.parametrize(
    ("mean", "most", "tail"), [(100.0, 1000, 1.5), (20.0, 1000, 1.5), (2.0, 1000, 1.5), (100.0, 200, 0.8), (400.0, 1500, 3.0)]
)
def test_candidate_counts_have_the_stated_mean_and_bounds(seed: int, mean: float, most: int, tail: float) -> None:
    counts = many(seed, candidates_mean=mean, candidates_max=most, candidates_tail=tail).candidates
    assert counts.min() >= 1
    assert counts.max() <= most
    assert counts.mean() == pytest.approx(mean, abs=0.02 * mean + 5 * counts.std() / np.sqrt(len(counts)))


@pytest.mark.parametrize("tail", [0.8, 1.5, 3.0])
def test_candidate_counts_fall_off_like_a_bounded_pareto_law(seed: int, tail: float) -> None:
    counts = many(seed, candidates_tail=tail).candidates

    def beyond(size: int) -> float:  # up to a factor; the last size is rounded down to the bound
        return float((size + 0.5) ** -tail - 1000**-tail)

    above = counts[counts > 100]
    for size in (200, 400, 800):
        assert_share(above > size, beyond(size) / beyond(100))


def test_candidate_counts_are_bounded_by_the_items_there_are(seed: int) -> None:
    assert set(many(seed, items=30, candidates_mean=100).candidates.tolist()) == {30}
    assert many(seed, items=300, candidates_mean=100).candidates.max() <= 300


def test_candidates_of_a_request_are_distinct_items(seed: int) -> None:
    plan = draw(Workload(rate=100, seconds=1, seed=seed, items=300))
    seen = [plan.items(number, 300) for number in range(len(plan))]
    for number, items in enumerate(seen):
        assert len(set(items.tolist())) == len(items) == plan.candidates[number]
        assert 0 <= items.min() <= items.max() < 300
    assert len({tuple(items[:5]) for items in seen}) > 0.9 * len(seen), "requests ask for different items"


def test_shares_of_events_cancellations_and_hurried_calls(seed: int) -> None:
    plan = many(seed, event_share=0.2, cancel_share=0.3, hurried_share=0.4, hurried_ms=20, deadline_ms=500, cancel_within_ms=80)
    cancelled, hurried = np.isfinite(plan.cancel_after_s), plan.deadline_s < 0.1
    assert_share(plan.event_after, 0.2)
    assert_share(cancelled, 0.3)
    assert_share(hurried, 0.4)
    assert_share(cancelled & hurried, 0.3 * 0.4)
    assert set(plan.deadline_s.tolist()) == {0.02, 0.5}
    after = plan.cancel_after_s[cancelled]
    assert 0 <= after.min() <= after.max() <= 0.08
    assert_share(after < 0.02, 0.25)
    none = many(seed)
    assert not none.event_after.any()
    assert np.isnan(none.cancel_after_s).all()
    assert set(none.deadline_s.tolist()) == {1.0}


@pytest.mark.parametrize("count", [1, 500, 5000])
def test_a_plan_of_given_length_keeps_the_rate(seed: int, count: int) -> None:
    workload = Workload(rate=100, seconds=10, seed=seed, cancel_share=0.3)
    plan = of_length(draw(workload), count, workload)
    assert {name: values.shape for name, values in arrays(plan).items() if name != "item_seed"} == dict.fromkeys(
        ("at", "user", "candidates", "deadline_s", "cancel_after_s", "event_after"), (count,)
    )
    assert (np.diff(plan.at) >= 0).all()
    assert plan.at[-1] == pytest.approx(count / 100, abs=7 * np.sqrt(count) / 100)


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"cancel_share": 1.5}, {"candidates_mean": 0}, {"sedd": 1}])
def test_impossible_workloads_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Workload.model_validate({"rate": 1, "seconds": 1} | wrong)
