"""Records → columns of a canonical log: the inverse of `model.data.request_log.records_of`.

Ids leave as the keys that records hold, so a log made of them loads to the same records.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.hashing import MISSING_KEY
from model.records import Records
from model.schema import Feature, FeatureKind


def columns_of_records(records: Records, features: Iterable[Feature], prefix: str = "") -> dict[str, pa.Array]:
    """One Arrow column [N] per stored feature of records [N], called ``<prefix><feature>``; missing values are null."""
    columns = {}
    for f in features:
        if f.derived is not None:
            continue
        values = np.ascontiguousarray(records[f.name])
        if f.kind is FeatureKind.MULTI:
            columns[prefix + f.name] = _lists(values)
        else:
            is_missing = np.isnan(values) if f.kind is FeatureKind.NUMERIC else values == MISSING_KEY
            columns[prefix + f.name] = pa.array(values, mask=is_missing)
    return columns


def lists_of(flat: NDArray[np.generic], lengths: NDArray[np.int64]) -> pa.ListArray:
    """Rows of `lengths` [N] values each, cut from `flat` in order."""
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), pa.array(flat))


def _lists(values: NDArray[np.int64]) -> pa.ListArray:
    """Slots [N, max_values] as lists that end with the last value; a missing one before it stays a key of its own."""
    slots = np.arange(1, values.shape[1] + 1)
    lengths = np.max(np.where(values != MISSING_KEY, slots, 0), axis=1, initial=0)
    return lists_of(values[slots <= lengths[:, None]], lengths)
