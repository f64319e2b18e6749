"""Predicted utilisation: what was asked for, not what was done."""

from __future__ import annotations

import pytest

from serving.metrics.demand_window import DemandWindow
from serving.metrics.engine_window import WINDOW_S
from serving.metrics.serving_metrics import ServingMetrics


class Clock:
    """Time that moves when told."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def window_after(clock: Clock, seconds: int, engine_s: float, host_s: float, refused: int = 0) -> DemandWindow:
    """Ten requests of so many seconds in every second, and some that were refused."""
    window = DemandWindow(clock)
    window.slots = 2
    for _ in range(seconds):
        clock.now_s += 1
        for _ in range(10):
            window.read(engine_s, host_s)
        for _ in range(refused):
            window.refused()
    return window


def test_it_is_the_fuller_of_engine_and_event_loop() -> None:
    assert window_after(Clock(), 20, engine_s=0.05, host_s=0.01).utilisation() == pytest.approx(0.25)
    assert window_after(Clock(), 20, engine_s=0.05, host_s=0.04).utilisation() == pytest.approx(0.4)


def test_refused_requests_count_as_average_ones_so_that_it_passes_1() -> None:
    assert window_after(Clock(), 20, engine_s=0.2, host_s=0, refused=20).utilisation() == pytest.approx(3.0)


def test_it_forgets() -> None:
    clock = Clock()
    window = window_after(clock, 2 * WINDOW_S, engine_s=0.05, host_s=0)
    assert window.utilisation() == pytest.approx(0.25, rel=0.05)
    clock.now_s += WINDOW_S
    assert window.utilisation() == 0


def test_only_overload_counts_as_demand_that_was_refused() -> None:
    metrics = ServingMetrics()
    metrics.demand.slots = 1
    metrics.demanded(1e6, 0.0)
    before = metrics.demand._seconds[-1].refused
    for reason in ("deadline", "unready", "invalid"):
        metrics.refused(reason)
    assert metrics.demand._seconds[-1].refused == before == 0
    metrics.refused("overloaded")
    assert sum(second.refused for second in metrics.demand._seconds) == 1
    assert metrics.registry.get_sample_value("kunlun_predicted_utilisation") > 0
