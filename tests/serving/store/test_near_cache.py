"""The near cache against a plain dict, its bound and its time to live."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.store.near_cache import NearCache

DTYPE = np.dtype([("price", "<f4")])


def priced(values: list[float]) -> np.ndarray:
    return np.array([(v,) for v in values], dtype=DTYPE)


def test_hits_and_misses() -> None:
    cache = NearCache(DTYPE, 1 << 20, 10.0)
    cache.insert(np.array([1, 2]), priced([1.0, 2.0]), cache.mark())
    rows, absent, _ = cache.lookup(np.array([2, 3, 1]))
    assert absent.tolist() == [False, True, False]
    assert rows["price"][~absent].tolist() == [2.0, 1.0]


def test_rows_belong_to_the_caller() -> None:
    cache = NearCache(DTYPE, 1 << 20, 10.0)
    cache.insert(np.array([1]), priced([1.0]), cache.mark())
    cache.lookup(np.array([1, 2]))[0]["price"] = 5.0
    rows, absent, _ = cache.lookup(np.array([1, 2]))
    assert absent.tolist() == [False, True]
    assert rows["price"][0] == 1.0


def test_entries_expire() -> None:
    now = [0.0]
    cache = NearCache(DTYPE, 1 << 20, 10.0, clock=lambda: now[0])
    cache.insert(np.array([1]), priced([1.0]), cache.mark())
    now[0] = 9.9
    assert cache.lookup(np.array([1]))[1].tolist() == [False]
    now[0] = 10.0
    assert cache.lookup(np.array([1]))[1].tolist() == [True]


def test_a_row_that_has_outlived_its_time_is_stale_for_a_while() -> None:
    now = [0.0]
    cache = NearCache(DTYPE, 1 << 20, 10.0, 5.0, clock=lambda: now[0])
    cache.insert(np.array([1]), priced([1.0]), cache.mark())
    seen = []
    for now[0] in (9.9, 10.0, 14.9, 15.0):
        _, absent, stale = cache.lookup(np.array([1, 2]))
        seen.append((absent.tolist(), stale.tolist()))
    gone, good = [True, True], [False, True]
    assert seen == [(good, [False, False]), (good, [True, False]), (good, [True, False]), (gone, [False, False])]


def test_what_has_changed_is_gone_and_reads_that_began_before_are_not_believed() -> None:
    cache = NearCache(DTYPE, 1 << 20, 10.0, 5.0)
    keys = np.array([1, 2, 3])
    cache.insert(keys, priced([1.0, 2.0, 3.0]), cache.mark())
    before = cache.mark()
    cache.forget(np.array([2, 9]))
    assert cache.lookup(keys)[1].tolist() == [False, True, False]
    cache.insert(np.array([2, 3, 9]), priced([2.5, 3.5, 9.5]), before)
    rows, absent, _ = cache.lookup(np.array([1, 2, 3, 9]))
    assert absent.tolist() == [False, True, False, True]
    assert rows["price"][[0, 2]].tolist() == [1.0, 3.5]
    cache.insert(np.array([2]), priced([2.6]), cache.mark())
    assert cache.lookup(np.array([2]))[0]["price"].tolist() == [np.float32(2.6)]
    before = cache.mark()
    cache.forget(None)
    assert cache.lookup(keys)[1].all()
    cache.insert(keys, priced([7.0, 8.0, 9.0]), before)
    assert cache.lookup(keys)[1].all()
    cache.insert(keys, priced([7.0, 8.0, 9.0]), cache.mark())
    assert not cache.lookup(keys)[1].any()


def test_rows_in_doubt_are_stale_and_the_last_known_row_never_ages() -> None:
    now = [0.0]
    cache = NearCache(DTYPE, 1 << 20, 10.0, 5.0, clock=lambda: now[0])
    keys = np.array([1, 2, 3])
    cache.insert(keys[:2], priced([1.0, 2.0]), cache.mark())
    now[0] = 1.0
    cache.doubt()
    _, absent, stale = cache.lookup(keys)
    assert (absent.tolist(), stale.tolist()) == ([False, False, True], [True, True, False])
    now[0] = 1e6
    assert cache.lookup(keys)[1].all()
    cache.forget(np.array([2]))
    rows, known = cache.last_known(keys)
    assert known.tolist() == [True, False, False]
    assert rows["price"][0] == 1.0


def test_more_changes_than_can_be_remembered_disturb_reads_under_way_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.store.near_cache._MOST_CHANGES", 3)
    cache = NearCache(DTYPE, 1 << 20, 10.0)
    cache.insert(np.array([1, 2]), priced([1.0, 2.0]), cache.mark())
    before = cache.mark()
    cache.forget(np.array([10, 11]))
    cache.forget(np.array([12, 1]))
    assert cache.lookup(np.array([1, 2]))[1].tolist() == [True, False]
    cache.insert(np.array([10, 2]), priced([5.0, 6.0]), before)
    assert cache.lookup(np.array([10, 2]))[1].tolist() == [True, False]
    assert cache.lookup(np.array([2]))[0]["price"].tolist() == [2.0]


def test_grows_to_its_capacity_and_keeps_what_it_holds() -> None:
    cache = NearCache(DTYPE, 3000 * 154, 10.0)
    keys = np.arange(3000)
    for part in np.split(keys, 30):
        cache.insert(part, priced(part.tolist()), cache.mark())
    rows, absent, _ = cache.lookup(keys)
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
            cache.insert(np.array(keys), priced(list(values.values())), cache.mark())
        else:
            rows, absent, _ = cache.lookup(np.array(keys))
            cached = [(key, row["price"]) for key, row, gone in zip(keys, rows, absent, strict=True) if not gone]
            assert all(truth[key] == price for key, price in cached)
    assert len(cache) <= cache.capacity == 16
