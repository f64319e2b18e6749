"""Near cache of item feature records: bounded in bytes, with a time to live, positive and negative entries.

One owner (the event loop), no locks. Records live in one array; a dict maps keys to slots, so a
lookup is one pass of dict reads and one fancy index. Eviction is CLOCK (second chance).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from model.records import Records, missing_records

_OVERHEAD_BYTES = 150
"""Dict entry, boxed key and bookkeeping arrays per slot."""


class NearCache:
    """Caches whether items have features, and which."""

    def __init__(
        self, dtype: np.dtype[np.void], max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.capacity = max(16, max_bytes // (dtype.itemsize + _OVERHEAD_BYTES))
        self._dtype, self._ttl_s, self._clock = dtype, ttl_s, clock
        self._slots: dict[int, int] = {}
        size = min(self.capacity, 1024)
        self._records = missing_records(dtype, size)
        self._keys = np.zeros(size, dtype=np.int64)
        self._stored = np.zeros(size, dtype=bool)
        self._expires = np.zeros(size)
        self._touched = np.zeros(size, dtype=bool)
        self._hand = 0

    def __len__(self) -> int:
        return len(self._slots)

    def lookup(self, keys: NDArray[np.int64]) -> tuple[Records, NDArray[np.bool_], NDArray[np.bool_]]:
        """Records [N] (missing where unknown), which have stored features [N], which are not cached [N]."""
        slots = np.array(list(map(self._slots.get, keys.tolist(), repeat(-1))), dtype=np.int64)
        expired = self._expires[slots] <= self._clock()  # of -1 as well, which is then overruled
        if not (slots < 0).any() and not expired.any() and self._stored[slots].all():  # the usual case
            self._touched[slots] = True
            return self._records[slots], ~expired, expired
        absent = slots < 0
        safe = np.where(absent, 0, slots)
        absent |= expired
        self._touched[safe[~absent]] = True
        found = self._stored[safe] & ~absent
        if found.all():
            return self._records[safe], found, absent
        records = missing_records(self._dtype, len(keys))
        records[found] = self._records[safe[found]]
        return records, found, absent

    def insert(self, keys: NDArray[np.int64], records: Records, found: NDArray[np.bool_]) -> None:
        """Remember what the store said of `keys` [N]."""
        expires = self._clock() + self._ttl_s
        for i, key in enumerate(keys.tolist()):
            slot = self._slots.get(key)
            if slot is None:
                slot = self._free_slot()
                self._slots[key] = slot
                self._keys[slot] = key
            self._records[slot], self._stored[slot], self._expires[slot] = records[i], found[i], expires

    def _free_slot(self) -> int:
        used = len(self._slots)
        if used < len(self._keys):
            return used
        if len(self._keys) < self.capacity:
            self._grow()
            return used
        while self._touched[self._hand]:
            self._touched[self._hand] = False
            self._hand = (self._hand + 1) % self.capacity
        slot = self._hand
        self._hand = (self._hand + 1) % self.capacity
        del self._slots[int(self._keys[slot])]
        return slot

    def _grow(self) -> None:
        size = min(self.capacity, 2 * len(self._keys))
        grown = missing_records(self._dtype, size)
        grown[: len(self._records)] = self._records
        self._records = grown
        for name in ("_keys", "_stored", "_expires", "_touched"):
            old = getattr(self, name)
            new = np.zeros(size, dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
