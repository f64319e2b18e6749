"""The work→time model finds fixed and proportional cost from noisy calls, and recovers from bursts."""

from __future__ import annotations

import numpy as np
import pytest

from serving.core.work_time import WorkTime


def test_nothing_is_known_before_the_first_call() -> None:
    times = WorkTime(["g"], peak_flops=1e9)
    assert times.predicted_s("g", 1e9) == 0.0
    assert times.flops_in("g", 1.0) == float("inf")
    assert times.least_s("g", 2e9) == 2.0


def test_fixed_and_proportional_cost_are_told_apart() -> None:
    rng = np.random.default_rng(seed := 5)
    print("seed", seed)
    times = WorkTime(["g"])
    for _ in range(300):
        flops = 10 ** rng.uniform(7, 9)
        times.observe("g", flops, (0.5e-3 + flops / 80e9) * rng.uniform(0.95, 1.1))
    assert times.fixed_s("g") == pytest.approx(0.5e-3, rel=0.15)
    assert times.predicted_s("g", 1e9) == pytest.approx(0.5e-3 + 1 / 80, rel=0.1)
    assert times.added_s("g", 1e9) == pytest.approx(1 / 80, rel=0.1)
    assert times.flops_in("g", 20e-3) == pytest.approx(19.5e-3 * 80e9, rel=0.1)


def test_calls_of_one_size_say_nothing_about_the_fixed_cost_but_predict_their_like() -> None:
    times = WorkTime(["g"])
    for _ in range(20):
        times.observe("g", 1e9, 0.02)
    assert times.fixed_s("g") == 0.0
    assert times.predicted_s("g", 1e9) == pytest.approx(0.02)
    assert times.backlog_s("g", 5e9) == pytest.approx(0.1)


def test_a_burst_counts_as_a_few_calls_and_is_forgotten() -> None:
    times = WorkTime(["g"])
    for _ in range(50):
        times.observe("g", 1e9, 0.01)
    times.observe("g", 1e9, 10.0)
    assert times.predicted_s("g", 1e9) < 0.012
    for _ in range(200):
        times.observe("g", 1e9, 0.02)
    assert times.predicted_s("g", 1e9) == pytest.approx(0.02, rel=0.05)


def test_no_call_is_predicted_to_beat_the_peak() -> None:
    times = WorkTime(["g"], peak_flops=1e9)
    for flops in (1e6, 1e7, 1e8):
        times.observe("g", flops, flops / 1e12)
    assert times.predicted_s("g", 1e9) >= 1.0


def test_graphs_are_apart() -> None:
    times = WorkTime(["a", "b"])
    times.observe("a", 1e9, 1.0)
    assert times.predicted_s("b", 1e9) == 0.0
