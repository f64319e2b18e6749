"""Near cache of what is known of items or users, one row per key: bounded in bytes, with a time to live.

One owner (the event loop), no locks. A row holds whatever its owner has made of the store's answer,
"no features" included. Rows live in one array; a dict maps keys to slots, so a lookup is one pass of
dict reads and one fancy index. Slot 0 holds nothing, is expired for ever, and stands for every key
that is not cached. Eviction is CLOCK (second chance).

A row that has outlived its time is *stale* for a while: still good for an answer, due to be read again. So is every
row that is in doubt. While the store does not answer, the last known row will do, however old (`last_known`).
A row that is said to have changed (`forget`) is gone at once, and so is what a read that began before
would insert: `mark` when the read begins, and hand the mark to `insert`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

OVERHEAD_BYTES = 150
"""Dict entry, boxed key and bookkeeping arrays per slot."""

_MOST_CHANGES = 100_000
"""Changed keys that are remembered one by one."""


class NearCache:
    """Caches rows of `dtype` by key."""

    def __init__(
        self,
        dtype: np.dtype[np.void],
        max_bytes: int,
        ttl_s: float,
        stale_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dtype, self._stale_s = dtype, stale_s
        self._changes, self._all_changed = 0, 0
        self._changed: dict[int, int] = {}
        self.capacity = max(16, max_bytes // (dtype.itemsize + OVERHEAD_BYTES))
        self._ttl_s, self._clock = ttl_s, clock
        self._slots: dict[int, int] = {}
        size = min(self.capacity, 1024) + 1
        self._rows = np.zeros(size, dtype=dtype)
        self._keys = np.zeros(size, dtype=np.int64)
        self._expires = np.full(size, -np.inf)
        self._touched = np.zeros(size, dtype=bool)
        self._hand = 1

    def __len__(self) -> int:
        return len(self._slots)

    def lookup(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_], NDArray[np.bool_]]:
        """Rows [N], the caller's to keep; which keys are not cached [N] (their rows mean nothing); which are stale [N]."""
        slots = np.fromiter(map(self._slots.get, keys.tolist(), repeat(0)), np.int64, len(keys))
        self._touched[slots] = True
        overdue = self._clock() - self._expires[slots]
        absent = overdue >= self._stale_s
        return self._rows.take(slots), absent, (overdue >= 0) & ~absent

    def last_known(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Rows [N] whatever their age, and which keys have one [N]; what has changed since it was read has none."""
        slots = np.fromiter(map(self._slots.get, keys.tolist(), repeat(0)), np.int64, len(keys))
        return self._rows.take(slots), self._expires[slots] > -np.inf

    def mark(self) -> int:
        """The present, for `insert`: changes that are heard of from now on."""
        return self._changes

    def insert(self, keys: NDArray[np.int64], rows: NDArray[np.void], mark: int) -> None:
        """Remember the rows of `keys` [N], read since `mark`, but those that have changed since."""
        if self._changes > mark:
            if self._all_changed > mark:
                return
            current = np.array([self._changed.get(key, 0) <= mark for key in keys.tolist()], bool)
            keys, rows = keys[current], rows[current]
        slots = [self._slot(key) for key in keys.tolist()]  # one that is evicted again at once is there twice; the last counts
        self._rows[slots], self._expires[slots] = rows, self._clock() + self._ttl_s

    def doubt(self) -> None:
        """Any row may have changed: all are stale from now on."""
        np.minimum(self._expires, self._clock(), out=self._expires)

    def forget(self, keys: NDArray[np.int64] | None) -> None:
        """These keys (None: all) have changed."""
        self._changes += 1
        if keys is None or len(self._changed) + len(keys) > _MOST_CHANGES:
            self._changed.clear()  # reads that are under way are not believed; the rows below are told apart
            self._all_changed = self._changes
        if keys is None:
            self._expires[:] = -np.inf
            return
        for key in keys.tolist():
            self._changed[key] = self._changes
            if (slot := self._slots.get(key)) is not None:
                self._expires[slot] = -np.inf

    def _slot(self, key: int) -> int:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = self._free_slot()
            self._keys[slot] = key
        return slot

    def _free_slot(self) -> int:
        free = len(self._slots) + 1
        if free <= self.capacity:
            if free == len(self._keys):
                self._grow()
            return free
        while self._touched[self._hand]:
            self._touched[self._hand] = False
            self._advance()
        slot = self._hand
        self._advance()
        del self._slots[int(self._keys[slot])]
        return slot

    def _advance(self) -> None:
        self._hand = self._hand % self.capacity + 1

    def _grow(self) -> None:
        size = min(self.capacity + 1, 2 * len(self._keys))
        for name in ("_rows", "_keys", "_expires", "_touched"):
            old = getattr(self, name)
            new = np.zeros(size, dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
