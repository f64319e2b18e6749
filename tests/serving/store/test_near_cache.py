"""The near cache against a plain dict, its bound and its time to live."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.store.near_cache import NearCache

DTYPE = np.dtype([("price", "<f4")])


def priced(values: list[float]) -> np.ndarray:
    return np.array([(v,) for v in values], dtype=DTYPE)


def test_hits_misses_and_negative_entries() -> None:
    cache = NearCache(DTYPE, 1 << 20, 10.0)
    cache.insert(np.array([1, 2]), priced([1.0, np.nan]), np.array([True, False]))
    records, found, absent = cache.lookup(np.array([2, 1, 3]))
    assert found.tolist() == [False, True, False]
    assert absent.tolist() == [False, False, True]
    assert records["price"][1] == 1.0
    assert np.isnan(records["price"][[0, 2]]).all()


def test_entries_expire() -> None:
    now = [0.0]
    cache = NearCache(DTYPE, 1 << 20, 10.0, clock=lambda: now[0])
    cache.insert(np.array([1]), priced([1.0]), np.array([True]))
    now[0] = 9.9
    assert cache.lookup(np.array([1]))[1].tolist() == [True]
    now[0] = 10.0
    assert cache.lookup(np.array([1]))[2].tolist() == [True]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=200))
def test_whatever_is_cached_is_right_and_the_bound_holds(steps: list[tuple[bool, int]]) -> None:
    cache = NearCache(DTYPE, 16 * 154, 1e9)
    truth: dict[int, float] = {}
    for number, (is_insert, key) in enumerate(steps):
        if is_insert:
            truth[key] = float(number)
            cache.insert(np.array([key]), priced([float(number)]), np.array([True]))
        else:
            records, found, absent = cache.lookup(np.array([key]))
            assert found[0] != absent[0]
            if found[0]:
                assert records["price"][0] == truth[key]
    assert len(cache) <= cache.capacity == 16
