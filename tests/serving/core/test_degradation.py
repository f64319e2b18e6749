"""The ladder: full answers without pressure, the cheapest NE per millisecond first, an answer in time under any load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core.degradation import Costs, Ladder, Way, describe
from serving.core.frontier import Frontier, Step, default_frontier
from serving.core.types import Rung

LADDER = Ladder(default_frontier(), begins=0.1, ends=0.7)
COSTS = Costs({1.0: 0.003, 0.5: 0.002, 0.25: 0.001}, per_candidate=5e-5, fixed=5e-4, candidates=100, events_behind=1)


def test_nobody_is_degraded_without_pressure() -> None:
    way = LADDER.choose(COSTS, wait_s=0.009, budget_s=0.1)
    assert way == Way(seconds=pytest.approx(0.003 + 0.0005 + 0.005))


def test_the_step_that_costs_least_ne_per_millisecond_goes_first() -> None:
    first = next(
        way
        for pressure in range(10, 70)
        if (way := LADDER.choose(COSTS, wait_s=pressure / 1000, budget_s=0.1)).rung is not Rung.FULL
    )
    assert (first.rung, first.stale, first.keep) == (Rung.STALE_STATE, True, 0)


def test_large_requests_give_way_before_small_ones() -> None:
    small = Costs({}, 5e-5, 5e-4, candidates=20)
    large = Costs({}, 5e-5, 5e-4, candidates=1000)

    def first_degraded(costs: Costs) -> int:
        return next(p for p in range(100, 900) if LADDER.choose(costs, p / 1000, 1.0).rung is not Rung.FULL)

    assert first_degraded(large) < first_degraded(small)


def test_a_heavier_weight_degrades_sooner() -> None:
    def first_degraded(weight: float) -> int:
        return next(p for p in range(10, 900) if LADDER.choose(COSTS, p / 1000, 1.0, weight).rung is not Rung.FULL)

    assert first_degraded(1.6) < first_degraded(1.0) < first_degraded(0.8)


@given(st.floats(0, 2), st.floats(0.001, 1), st.integers(1, 1000), st.none() | st.integers(0, 20), st.booleans())
def test_there_is_always_an_answer_in_time(
    wait_s: float, budget_s: float, candidates: int, behind: int | None, cached: bool
) -> None:
    costs = Costs({} if cached else COSTS.encode, 5e-5, 5e-4, candidates, behind)
    way = LADDER.choose(costs, wait_s, budget_s)
    assert way.rung is Rung.PRIOR or wait_s + way.seconds <= budget_s
    assert way.keep < candidates
    if cached:
        assert not way.stale
        assert way.history_share == 1.0


@given(st.lists(st.floats(0, 1.2), min_size=2, max_size=10))
def test_more_pressure_never_means_more_work(pressures: list[float]) -> None:
    ways = [LADDER.choose(COSTS, pressure * 0.1, 0.1) for pressure in sorted(pressures)]
    seconds = [way.seconds for way in ways]
    assert seconds == sorted(seconds, reverse=True)
    losses = [way.loss for way in ways]
    assert losses == sorted(losses)


def test_a_stale_state_is_used_only_as_far_behind_as_was_measured() -> None:
    far = Costs(COSTS.encode, 5e-5, 5e-4, 100, events_behind=9)
    rungs = {LADDER.choose(far, p / 100, 1.0).stale for p in range(100)}
    assert rungs == {False}


def test_without_deadline_left_the_prior_answers() -> None:
    assert LADDER.choose(COSTS, 0.0, -1.0).rung is Rung.PRIOR


def test_a_frontier_without_gains_degrades_only_to_be_in_time() -> None:
    frontier = default_frontier().model_copy(
        update={"steps": (Step(rung="STALE_STATE", setting=8, ne_loss=-0.01, ms_saved=0.0),)}
    )
    ladder = Ladder(Frontier.model_validate(frontier), 0.1, 0.7)
    assert ladder.choose(COSTS, 0.05, 0.1).rung is Rung.STALE_STATE, "a measured gain is no loss, but not better than full"
    assert ladder.choose(COSTS, 0.0, 0.1).rung is Rung.FULL


def test_reasons_say_what_was_done() -> None:
    way = Way(0.0, 0.1, Rung.SHORT_HISTORY, history_share=0.5, keep=25)
    assert describe(way, 100) == "overload: histories cut to 0.5 of their caps, 25 of 100 candidates scored"
    assert describe(Way(0.0, 1.0, Rung.PRIOR), 100) == "overload: no engine time is left"
