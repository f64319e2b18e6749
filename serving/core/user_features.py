"""Near cache of user features, "no features" included.

Reading a user's features costs no round trip of its own, since the histories are read anyway; what is cached spares the
store a key, and is still known while the store does not answer. So a row in doubt is read again by the next Rank itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.records import Records, missing_records
from serving.store.keys import user_hash
from serving.store.near_cache import NearCache


class UserFeatures(NamedTuple):
    """A user's feature record [1], missing values where nothing is stored (`is_stored`)."""

    record: Records
    is_stored: bool


class UserFeatureCache:
    """Feature records of `dtype` by user. Keys of the near cache are halves of the users' hashes; a row holds the whole one."""

    def __init__(
        self, dtype: np.dtype[np.void], max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        row = np.dtype([("user", "V16"), ("is_stored", "?"), ("record", dtype)])
        self._dtype, self._near = dtype, NearCache(row, max_bytes, ttl_s, clock=clock)

    def lookup(self, user_id: str) -> UserFeatures | None:
        """What is known to be current."""
        user, key = _identity(user_hash(user_id))
        rows, absent, _ = self._near.lookup(key)
        return None if absent[0] else self._of(user, rows)

    def last_known(self, user_id: str) -> UserFeatures:
        """However old; without features when nothing is known."""
        user, key = _identity(user_hash(user_id))
        rows, known = self._near.last_known(key)
        return (self._of(user, rows) if known[0] else None) or UserFeatures(missing_records(self._dtype, 1), False)

    def mark(self) -> int:
        """See `NearCache.mark`."""
        return self._near.mark()

    def insert(self, user_id: str, record: Records | None, mark: int) -> UserFeatures:
        """Remember what was read since `mark` (None: nothing is stored); returns it."""
        features = UserFeatures(missing_records(self._dtype, 1) if record is None else record, record is not None)
        user, key = _identity(user_hash(user_id))
        row = np.zeros(1, self._near.dtype)
        row["user"], row["is_stored"], row["record"] = np.void(user), features.is_stored, features.record
        self._near.insert(key, row, mark)
        return features

    def forget(self, users: Set[str] | None) -> None:
        """Features of these users (by `user_hash`; None: of all) have changed."""
        if users is None:
            self._near.forget(None)
        elif users:
            self._near.forget(np.concatenate([_identity(user)[1] for user in users]))

    def doubt(self) -> None:
        """Changes may have been missed."""
        self._near.doubt()

    def _of(self, user: bytes, rows: NDArray[np.void]) -> UserFeatures | None:
        if rows["user"][0].tobytes() != user:
            return None  # another user with the same half of a hash
        return UserFeatures(rows["record"], bool(rows["is_stored"][0]))


def _identity(hexadecimal: str) -> tuple[bytes, NDArray[np.int64]]:
    whole = bytes.fromhex(hexadecimal)
    return whole, np.frombuffer(whole, np.int64, 1)
