"""The capacity search on a queue whose capacity is known, and the two helpers that read runs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.openloop.capacity import find_capacity
from loadtest.scoreboard.load_rows import slope

SERVICE_S, BOUND_S = 0.01, 0.1


def queue(rate: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """One server of fixed service time, first in first out, Poisson arrivals: which requests took too long."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, 30, rng.poisson(rate * 30)))
    free, latency = 0.0, np.empty(len(at))
    for n, arrival in enumerate(at.tolist()):
        free = max(free, arrival) + SERVICE_S
        latency[n] = free - arrival
    return at, latency > BOUND_S


def true_capacity() -> float:
    """Where 1 % of many requests miss the bound, by brute force."""
    rates = np.arange(70, 100, 1.0)
    shares = [np.mean(np.concatenate([queue(rate, 1000 + seed)[1] for seed in range(6)])) for rate in rates]
    return float(rates[np.searchsorted(shares, 0.01)])


@pytest.mark.parametrize("guess", [5.0, 60.0, 2000.0])
def test_the_search_finds_the_capacity_of_a_known_queue(guess: float) -> None:
    found = find_capacity(queue, guess, most_probes=30)
    assert found.rate < found.fails_at <= 1.06 * found.rate
    assert found.rate == pytest.approx(true_capacity(), rel=0.12)
    clear = [p for p in found.probes if p.share > 0.5]
    assert all(p.decided for p in clear)
    assert all(p.requests < 2 * 1.2 * 30 * p.rate for p in clear), "clear verdicts need one run"


def test_the_slope_of_a_line_is_found_and_noise_has_none() -> None:
    rng = np.random.default_rng(5)
    found, error = slope((3 + 0.5 * np.arange(40) + rng.normal(0, 0.1, 40)).tolist())
    assert found == pytest.approx(0.5, abs=4 * error)
    assert abs(found) / error > 50
    flat, error = slope(rng.normal(7, 1, 40).tolist())
    assert abs(flat) / error < 4
