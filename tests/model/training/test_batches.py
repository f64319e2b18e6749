"""What training hides of histories."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.records import TIME_MS
from model.training.batches import _hide
from model.training.config import AugmentConfig

RECORD = np.dtype([(TIME_MS, np.int64)])


def history(times: list[int]) -> NDArray[np.void]:
    return np.array([(t,) for t in times], RECORD)


def test_shortened_histories_begin_at_one_time() -> None:
    """Cut by shares of each, they would lose clicks whose impressions stay."""
    histories = {
        "impression": history(np.repeat(np.arange(0, 1_000, 100), 8).tolist()),
        "click": history(list(range(550, 1_000, 20))),  # none of the older impressions was clicked
        "like": history([]),
    }
    augment, seen = AugmentConfig(empty_history=0.0, truncated_history=1.0), set()
    for seed in range(200):
        kept = _hide(histories, augment, np.random.default_rng(seed))
        again = _hide(histories, augment, np.random.default_rng(seed))
        assert all(np.array_equal(kept[event], again[event]) for event in histories)
        times = np.concatenate([h[TIME_MS] for h in kept.values()])
        seen.add(len(times))
        since = times.min(initial=10_000)
        for event, whole in histories.items():
            assert np.array_equal(kept[event], whole[whole[TIME_MS] >= since])
    assert min(seen) < 10
    assert max(seen) > 80
    assert len(seen) > 20


def test_empty_histories_stay_empty() -> None:
    nothing = {"click": history([])}
    assert len(_hide(nothing, AugmentConfig(empty_history=0.0, truncated_history=1.0), np.random.default_rng(0))["click"]) == 0
