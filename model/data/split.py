"""Hold-out splits of a request log, used by training and evaluation. Deterministic; no randomness but the user hash.

`per_user_last`: each user's last ranking is test, the one before it validation, the rest training;
users with one ranking only are in training, and of two rankings the first is. `time`: by request
time, so that training is strictly the past. `user`: whole users are held out by a hash of their id.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.hashing import string_keys
from model.schema import HashSpec

KINDS = ("per_user_last", "time", "user")
SALT = HashSpec(seed=20_261_123)


@dataclass(frozen=True)
class Split:
    """Request numbers of the three parts, ascending; disjoint, together all requests."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_requests(log: RequestLog, kind: str, *, validation: float = 0.1, test: float = 0.1) -> Split:
    """Split by `kind`; the fractions are for `time` and `user`. Raises `ConfigError` if training or test would be empty."""
    if validation < 0 or test <= 0 or validation + test >= 1:
        raise ConfigError(f"split: expected fractions with a sum below 1, found validation {validation} and test {test}")
    if kind == "per_user_last":
        part = _per_user_last(log)
    elif kind == "time":
        part = _by_share(np.arange(len(log)) / max(1, len(log)), validation, test)
        part = _keep_ties_together(log.time_ms, part)
    elif kind == "user":
        share = (string_keys(log.user_ids, SALT).astype(np.uint64) >> np.uint64(11)).astype(np.float64) / 2.0**53
        part = _by_share(share, validation, test)[log.user_index]
    else:
        raise ConfigError(f"split: expected one of {', '.join(KINDS)}, found {kind!r}")
    split = Split(*(np.flatnonzero(part == p).astype(np.int64) for p in range(3)))
    for name, wanted in (("training", split.train), ("test", split.test)):
        if not len(wanted):
            raise ConfigError(f"split {kind!r}: the {name} part is empty: the log has {len(log)} request(s)")
    return split


def _per_user_last(log: RequestLog) -> NDArray[np.int64]:
    """Part 0, 1, 2 per request; requests are in time order, so a user's last request is the last one."""
    count = np.bincount(log.user_index, minlength=len(log.user_ids))
    order = np.argsort(log.user_index, kind="stable")
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    rank = np.empty(len(log), dtype=np.int64)
    rank[order] = np.arange(len(log)) - np.repeat(first, count)
    own = count[log.user_index]
    from_end = own - 1 - rank
    part = np.zeros(len(log), dtype=np.int64)
    part[(from_end == 0) & (own >= 2)] = 2
    part[(from_end == 1) & (own >= 3)] = 1
    return part


def _by_share(share: NDArray[np.float64], validation: float, test: float) -> NDArray[np.int64]:
    return np.where(share < 1 - validation - test, 0, np.where(share < 1 - test, 1, 2)).astype(np.int64)


def _keep_ties_together(time_ms: NDArray[np.int64], part: NDArray[np.int64]) -> NDArray[np.int64]:
    """Requests of the same millisecond go to the earliest part any of them is in."""
    first = np.searchsorted(time_ms, time_ms, side="left")
    return part[first]
