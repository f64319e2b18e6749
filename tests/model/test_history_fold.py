"""Frequent events change a state at most once per interval, by the request's clock alone."""

from __future__ import annotations

import numpy as np

from model.history import folded, visible_history
from model.records import event_dtype
from model.schema import EventType

IMPRESSION = EventType(name="impression", cap=3, min_fold_interval_s=60.0)
ARRIVALS = np.zeros(6, dtype=event_dtype(IMPRESSION))
ARRIVALS["time_ms"] = [1_000, 59_999, 60_000, 61_000, 119_999, 125_000]
ARRIVALS["arrival_ms"] = ARRIVALS["time_ms"] + 10


def test_without_an_interval_everything_counts() -> None:
    assert len(folded(ARRIVALS, 0.0, 60_500)) == 6


def test_events_of_the_running_interval_are_left_out() -> None:
    assert len(folded(ARRIVALS, 60.0, 60_500)) == 2
    assert len(folded(ARRIVALS, 60.0, 119_999)) == 2
    assert len(folded(ARRIVALS, 60.0, 120_000)) == 5


def test_the_cap_counts_visible_events() -> None:
    assert visible_history(ARRIVALS, IMPRESSION, 120_000)["time_ms"].tolist() == [60_000, 61_000, 119_999]
    assert visible_history(ARRIVALS, IMPRESSION, 60_500)["time_ms"].tolist() == [1_000, 59_999]
