"""Frequent events change a state at most once per interval, by the request's clock alone."""

from __future__ import annotations

import numpy as np

from model.history import fold_before_ms
from model.records import ARRIVAL_MS

ARRIVALS = np.zeros(6, dtype=[("item", "<i8"), ("time_ms", "<i8"), (ARRIVAL_MS, "<i8")])
ARRIVALS[ARRIVAL_MS] = [1_000, 59_999, 60_000, 61_000, 119_999, 125_000]


def test_without_an_interval_everything_counts() -> None:
    assert len(fold_before_ms(ARRIVALS, 0.0, 60_500)) == 6


def test_arrivals_of_the_running_interval_are_left_out() -> None:
    assert len(fold_before_ms(ARRIVALS, 60.0, 60_500)) == 2
    assert len(fold_before_ms(ARRIVALS, 60.0, 119_999)) == 2
    assert len(fold_before_ms(ARRIVALS, 60.0, 120_000)) == 5
