"""The capacity search on systems whose capacity is known in closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from loadtest.openloop.capacity import Capacity, find_capacity

Misses = Callable[[float, int], tuple[NDArray[np.float64], NDArray[np.bool_]]]
ALLOWED = 0.01
SEEDS = range(5)


def steep(capacity: float, seed: int, seconds: float = 10.0) -> Misses:
    """Requests miss independently; their share passes `ALLOWED` exactly at `capacity`."""
    rng = np.random.default_rng(seed)

    def misses(rate: float, _: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        at = np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))
        return at, rng.random(len(at)) < min(1.0, ALLOWED * (rate / capacity) ** 20)

    return misses


def queue(service_rate: float, bound_s: float, seed: int) -> Misses:
    """One server, exponential service times, first come first served."""
    rng = np.random.default_rng(seed)

    def misses(rate: float, _: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        at = np.cumsum(rng.exponential(1 / rate, round(40 * rate)))
        service = rng.exponential(1 / service_rate, len(at))
        work = np.cumsum(service)
        left = work + np.maximum.accumulate(at - (work - service))  # Lindley's recursion, unrolled
        return at, left - at > bound_s

    return misses


def fixed(share: float) -> tuple[Misses, list[tuple[float, int]]]:
    """`share` of 100 requests in each of ten seconds miss, the first ones; and the calls that were made."""
    calls: list[tuple[float, int]] = []

    def misses(rate: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        calls.append((rate, seed))
        number = np.arange(1000)
        return number / 100, number % 100 < round(share * 100)

    return misses, calls


def assert_consistent(found: Capacity) -> None:
    assert 0 <= found.rate < found.fails_at
    assert found.rate == max((p.rate for p in found.probes if p.passed and p.rate < found.fails_at), default=0.0)
    assert found.fails_at == min((p.rate for p in found.probes if not p.passed), default=float("inf"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_steep_systems_capacity_is_found(seed: int) -> None:
    found = find_capacity(steep(100.0, seed), 70.0)
    assert found.rate == pytest.approx(100, rel=0.1)
    assert found.fails_at / found.rate <= 1.05
    assert_consistent(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_queues_capacity_is_found_although_its_misses_come_in_bursts(seed: int) -> None:
    service_rate, bound_s = 100.0, 0.2
    exact = service_rate - log(1 / ALLOWED) / bound_s  # M/M/1: P(sojourn > t) = exp(-(service rate - rate) t)
    found = find_capacity(queue(service_rate, bound_s, seed), 40.0)
    assert found.rate == pytest.approx(exact, rel=0.1)
    assert_consistent(found)


@pytest.mark.parametrize("guess", [1.0, 5.0, 2000.0, 10_000.0])
def test_a_first_guess_a_hundred_times_off_does_no_harm(guess: float) -> None:
    found = find_capacity(steep(100.0, seed=1, seconds=60.0), guess)
    assert found.rate == pytest.approx(100, rel=0.1)
    assert found.fails_at == pytest.approx(100, rel=0.15)
    assert len(found.probes) <= 12


@pytest.mark.parametrize(("share", "passed"), [(0.0, True), (0.1, False)])
def test_a_probe_stops_as_soon_as_the_evidence_decides(share: float, passed: bool) -> None:
    misses, calls = fixed(share)
    find_capacity(misses, 50.0, most_probes=4)
    assert [seed for _, seed in calls] == [0] * 4
    assert len(Counter(rate for rate, _ in calls)) == 4
    found = find_capacity(misses, 50.0, most_probes=1)
    assert (found.probes[0].decided, found.probes[0].passed, found.probes[0].requests) == (True, passed, 1000)


def test_without_a_decision_all_runs_are_used_and_the_point_estimate_decides() -> None:
    misses, calls = fixed(ALLOWED)
    found = find_capacity(misses, 50.0, runs=5, most_probes=1)
    assert calls == [(50.0, seed) for seed in range(5)]
    [probe] = found.probes
    assert (probe.decided, probe.passed, probe.share, probe.requests) == (False, True, ALLOWED, 5000)


def test_twenty_requests_without_a_miss_are_no_evidence_for_one_percent() -> None:
    def misses(rate: float, _: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return np.arange(20) / rate, np.zeros(20, bool)

    [probe] = find_capacity(misses, 2.0, most_probes=1).probes
    assert (probe.decided, probe.passed, probe.requests) == (False, True, 60)
    assert probe.half_width > ALLOWED


def test_a_request_on_the_last_whole_second_counts() -> None:
    def misses(_: float, __: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return np.array([0.0, 1.0, 2.0]), np.array([False, False, True])

    [probe] = find_capacity(misses, 1.0, runs=1, most_probes=1).probes
    assert (probe.requests, probe.share) == (3, pytest.approx(1 / 3))


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.floats(0.01, 1000))
def test_the_two_rates_never_cross_whatever_the_verdicts(verdicts: list[bool], guess: float) -> None:
    left = iter(verdicts)

    def misses(_: float, __: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return np.arange(1000) / 100, np.full(1000, not next(left))

    found = find_capacity(misses, guess)
    assert_consistent(found)
    assert len(found.probes) <= 12
    assert [p.passed for p in found.probes] == verdicts[: len(found.probes)]


def test_a_system_that_always_or_never_passes_has_an_open_end() -> None:
    always, never = find_capacity(fixed(0.0)[0], 10.0), find_capacity(fixed(1.0)[0], 10.0)
    assert (always.rate > 10_000, always.fails_at) == (True, float("inf"))
    assert (never.rate, never.fails_at < 0.01) == (0.0, True)


def test_every_probe_is_noted() -> None:
    notes: list[str] = []
    found = find_capacity(steep(100.0, seed=0), 90.0, note=notes.append)
    assert len(notes) == len(found.probes)
    for text, probe in zip(notes, found.probes, strict=True):
        assert f"{probe.rate:.1f}/s" in text
        assert ("passed" if probe.passed else "failed") in text
        assert ("(undecided)" in text) != probe.decided
