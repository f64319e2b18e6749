"""The declared hash from ids to int64 keys.

Every id in the system (item, user, categorical value) is an int64 *key*: integers are themselves,
strings are hashed with the function the schema declares. Training, store and server call only this
module, so a key means the same everywhere. Collisions of 64-bit keys are ignored (10 million
distinct ids: probability 3e-6).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

from model.schema import HashSpec

MISSING_KEY = np.iinfo(np.int64).min
"""The key of a missing value; no integer id may take it, and the string hash never returns it."""


def string_key(text: str, spec: HashSpec) -> int:
    """int64 key of one string."""
    unsigned = xxhash.xxh64_intdigest(text.encode(), spec.seed)
    signed = unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
    return signed if signed != MISSING_KEY else MISSING_KEY + 1


def string_keys(texts: Iterable[str], spec: HashSpec) -> NDArray[np.int64]:
    """int64 keys of many strings, [N]."""
    digest, seed = xxhash.xxh64_intdigest, spec.seed
    keys = np.array([digest(text.encode(), seed) for text in texts], dtype=np.uint64).view(np.int64)
    keys[keys == MISSING_KEY] = MISSING_KEY + 1
    return keys


def bucket_of(keys: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Rows 1 … buckets of hashed keys (row 0 for `MISSING_KEY`); Fibonacci hashing spreads integer ids."""
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    rows = (mixed >> np.uint64(33)).astype(np.int64) % buckets + 1
    return np.where(keys == MISSING_KEY, 0, rows)
