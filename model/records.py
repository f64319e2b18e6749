"""Fixed-width records: the one in-memory and on-the-wire form of features and events.

A *record* is one row of a numpy structured array whose dtype follows from the schema: ids are int64
keys (`MISSING_KEY` where absent), multi-valued features are padded int64 vectors, numbers are
float32 (NaN where absent). Parquet columns, protobuf columns and store values are all turned into
records; encoding, training and serving read nothing else. That is what rules out train/serve skew.

Invariant: a record's bytes depend only on the schema and the values; no padding bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.hashing import MISSING_KEY, string_key
from model.schema import EventType, Feature, FeatureKind, HashSpec, IdType

Records = NDArray[np.void]

ITEM = "item"
TIME_MS = "time_ms"
ARRIVAL_MS = "arrival_ms"


class FieldError(ValueError):
    """A value that does not fit its declared feature: says the field, what was expected, what was found."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"{field}: expected {expected}, found {found}")
        self.field, self.expected, self.found = field, expected, found


def feature_dtype(features: Iterable[Feature]) -> np.dtype[np.void]:
    """Record dtype of a group of stored features (derived ones are computed, never stored)."""
    return np.dtype([_field(f) for f in features if f.derived is None])


def event_dtype(event: EventType) -> np.dtype[np.void]:
    """Record dtype of one event type: item key, event and arrival time (ms since the epoch), attributes."""
    head: list[tuple[str, str]] = [(ITEM, "<i8"), (TIME_MS, "<i8"), (ARRIVAL_MS, "<i8")]
    return np.dtype([*head, *(_field(f) for f in event.attributes)])


def record_version(dtype: np.dtype[np.void], features: Iterable[Feature], hash_spec: HashSpec, *ids: IdType) -> str:
    """Eight hex digits that change when the layout of a record does, or what its keys mean; part of every store key.

    `ids`: types of the ids that the record has besides those of its features.
    """
    keyed = [f"{f.name}={f.id_type.value}" for f in features if f.kind is not FeatureKind.NUMERIC]
    meaning = f"{dtype.descr!r} {keyed} {[i.value for i in ids]} {hash_spec.algorithm}/{hash_spec.seed}"
    return hashlib.sha256(meaning.encode()).hexdigest()[:8]


def missing_records(dtype: np.dtype[np.void], count: int) -> Records:
    """`count` records with every value missing."""
    records = np.zeros(count, dtype=dtype)
    for name in dtype.names or ():
        base = dtype[name].base
        records[name] = np.nan if base.kind == "f" else MISSING_KEY
    return records


def missing_values(records: Records) -> dict[str, int]:
    """How many of the records lack each feature; features that none lacks are left out."""
    counts = {}
    for name in records.dtype.names or ():
        values = records[name]
        absent = np.isnan(values) if values.dtype.kind == "f" else values == MISSING_KEY
        if found := int(np.count_nonzero(absent if absent.ndim == 1 else absent.all(axis=1))):
            counts[name] = found
    return counts


def _field(feature: Feature) -> tuple[Any, ...]:
    if feature.kind is FeatureKind.NUMERIC:
        return (feature.name, "<f4")
    if feature.kind is FeatureKind.MULTI:
        return (feature.name, "<i8", (feature.max_values,))
    return (feature.name, "<i8")


def fill_scalar_column(records: Records, feature: Feature, values: Sequence[Any], hash_spec: HashSpec, where: str) -> None:
    """Write one value per record; None means missing. Raises `FieldError`."""
    if len(values) != len(records):
        raise FieldError(where, f"{len(records)} value(s)", f"{len(values)}")
    if feature.kind is FeatureKind.NUMERIC:
        records[feature.name] = numbers(values, where)
    else:
        records[feature.name] = keys(values, feature.id_type, hash_spec, where)


def fill_multi_column(
    records: Records, feature: Feature, values: Sequence[Any], offsets: Sequence[int], hash_spec: HashSpec, where: str
) -> None:
    """Write rows values[offsets[r]:offsets[r+1]] of a multi-valued feature. Raises `FieldError`."""
    if len(offsets) != len(records) + 1 or (len(offsets) and (offsets[0] != 0 or offsets[-1] != len(values))):
        raise FieldError(f"{where}.offsets", f"{len(records) + 1} offsets from 0 to {len(values)}", f"{len(offsets)} offsets")
    bounds = np.asarray(offsets, dtype=np.int64)
    lengths = np.diff(bounds)
    if np.any(lengths < 0):
        raise FieldError(f"{where}.offsets", "non-decreasing offsets", "a decrease")
    if len(lengths) and lengths.max() > feature.max_values:
        raise FieldError(where, f"at most {feature.max_values} values per row", str(int(lengths.max())))
    flat = keys(values, feature.id_type, hash_spec, where)
    row = np.repeat(np.arange(len(records)), lengths)
    slot = np.arange(len(flat)) - np.repeat(bounds[:-1], lengths)
    target = np.full((len(records), feature.max_values), MISSING_KEY, dtype=np.int64)
    target[row, slot] = flat
    records[feature.name] = target


def numbers(values: Sequence[Any], where: str) -> NDArray[np.float32]:
    """float32 column; None becomes NaN (missing), a given NaN or infinity is refused."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        missing = np.zeros(len(values), dtype=bool)
    else:
        missing = np.fromiter((v is None for v in values), dtype=bool, count=len(values))
    try:
        column = np.asarray([0.0 if v is None else v for v in values] if missing.any() else values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FieldError(where, "numbers", _kinds(values)) from error
    if not np.all(np.isfinite(column)):
        raise FieldError(where, "finite numbers", str(column[~np.isfinite(column)][0]))
    column[missing] = np.nan
    return column


def keys(values: Sequence[Any], id_type: IdType, hash_spec: HashSpec, where: str) -> NDArray[np.int64]:
    """int64 keys of a column of declared type; None becomes `MISSING_KEY`. An int64 array holds keys already."""
    if isinstance(values, np.ndarray) and values.dtype == np.int64:
        return values
    wanted = str if id_type is IdType.STRING else (int, np.integer)
    out = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        if value is None:
            out[i] = MISSING_KEY
        elif not isinstance(value, wanted) or isinstance(value, bool):
            raise FieldError(where, f"{id_type.value} ids", f"{type(value).__name__} {value!r}")
        else:
            out[i] = string_key(value, hash_spec) if isinstance(value, str) else int(value)
    return out


def _kinds(values: Sequence[Any]) -> str:
    return ", ".join(sorted({type(v).__name__ for v in values}))
