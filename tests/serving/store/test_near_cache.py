"""The near cache against a plain dict, its bound and its time to live."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.store.near_cache import NearCache

DTYPE = np.dtype([("price", "<f4")])


def priced(values: list[float]) -> np.ndarray:
    return np.array([(v,) for v in values], dtype=DTYPE)


def test_hits_and_misses() -> None:
    cache = NearCache(DTYPE, 1 << 20, 10.0)
    cache.insert(np.array([1, 2]), priced([1.0, 2.0]))
    rows, absent = cache.lookup(np.array([2, 3, 1]))
    assert absent.tolist() == [False, True, False]
    assert rows["price"][~absent].tolist() == [2.0, 1.0]


def test_rows_belong_to_the_caller() -> None:
    cache = NearCache(DTYPE, 1 << 20, 10.0)
    cache.insert(np.array([1]), priced([1.0]))
    cache.lookup(np.array([1, 2]))[0]["price"] = 5.0
    rows, absent = cache.lookup(np.array([1, 2]))
    assert absent.tolist() == [False, True]
    assert rows["price"][0] == 1.0


def test_entries_expire() -> None:
    now = [0.0]
    cache = NearCache(DTYPE, 1 << 20, 10.0, clock=lambda: now[0])
    cache.insert(np.array([1]), priced([1.0]))
    now[0] = 9.9
    assert cache.lookup(np.array([1]))[1].tolist() == [False]
    now[0] = 10.0
    assert cache.lookup(np.array([1]))[1].tolist() == [True]


def test_grows_to_its_capacity_and_keeps_what_it_holds() -> None:
    cache = NearCache(DTYPE, 3000 * 154, 10.0)
    keys = np.arange(3000)
    for part in np.split(keys, 30):
        cache.insert(part, priced(part.tolist()))
    rows, absent = cache.lookup(keys)
    assert len(cache) == cache.capacity == 3000
    assert not absent.any()
    assert rows["price"].tolist() == keys.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 60), min_size=1, max_size=25, unique=True)), max_size=100))
def test_whatever_is_cached_is_right_and_the_bound_holds(steps: list[tuple[bool, list[int]]]) -> None:
    cache = NearCache(DTYPE, 16 * 154, 1e9)
    truth: dict[int, float] = {}
    for number, (is_insert, keys) in enumerate(steps):
        if is_insert:
            values = {key: float(100 * number + key) for key in keys}
            truth |= values
            cache.insert(np.array(keys), priced(list(values.values())))
        else:
            rows, absent = cache.lookup(np.array(keys))
            cached = [(key, row["price"]) for key, row, gone in zip(keys, rows, absent, strict=True) if not gone]
            assert all(truth[key] == price for key, price in cached)
    assert len(cache) <= cache.capacity == 16
