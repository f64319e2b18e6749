"""Columns of the canonical log's Parquet files as arrays: records, keys, flat lists. Shared by all that read the log.

Works on whole tables and on batches of rows alike. Raises `FieldError` naming file and column. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.hashing import MISSING_KEY, string_keys
from model.records import (
    ARRIVAL_MS,
    ITEM,
    TIME_MS,
    FieldError,
    Records,
    event_dtype,
    feature_dtype,
    fill_multi_column,
    fill_scalar_column,
    missing_records,
)
from model.records import keys as keys_of
from model.schema import EventType, Feature, FeatureKind, HashSpec, Schema


@dataclass(frozen=True)
class ShownColumns:
    """What requests.parquet says of shown items [C]."""

    positions: NDArray[np.int32]  # -1 unknown
    labels: NDArray[np.float32]  # [C, tasks], NaN unknown
    columns: dict[str, NDArray[np.float32]]
    truth: NDArray[np.float32] | None  # [C, tasks]


def shown_columns(table: pa.Table, schema: Schema, rows: int) -> ShownColumns:
    """The columns of `rows` shown items in rows of a requests table."""
    truth = [f"truth_{t.name}" for t in schema.tasks]
    return ShownColumns(
        positions=_numbers(table, "positions", rows, np.int32, -1),
        labels=np.stack([_labels(table, f"label_{t.name}", rows) for t in schema.tasks], axis=1),
        columns={c: _numbers(table, f"column_{c}", rows, np.float32, np.nan) for c in schema.request_columns},
        truth=(
            np.stack([_numbers(table, name, rows, np.float32, np.nan) for name in truth], axis=1)
            if all(name in table.column_names for name in truth)
            else None
        ),
    )


def records_of(table: pa.Table, features: Sequence[Feature], schema: Schema, where: str, prefix: str = "") -> Records:
    """Feature records of a Parquet table's rows; columns are called ``<prefix><feature>``, absent ones are missing."""
    records = missing_records(feature_dtype(features), len(table))
    for f in features:
        name = prefix + f.name
        if name not in table.column_names:
            continue
        column = table[name].combine_chunks()
        if f.kind is FeatureKind.MULTI:
            filled = pc.coalesce(column, pa.scalar([], column.type))
            fill_multi_column(
                records, f, _ids(flat(filled), schema.hash), offsets_of(filled).tolist(), schema.hash, f"{where}: {name}"
            )
        else:
            values = column.to_pylist() if f.kind is FeatureKind.NUMERIC else _ids(column, schema.hash)
            fill_scalar_column(records, f, values, schema.hash, f"{where}: {name}")
    return records


def item_keys_of(column: pa.ChunkedArray | pa.Array, schema: Schema, where: str) -> NDArray[np.int64]:
    """int64 keys [N] of a column of item ids, or of their keys; raises `FieldError`."""
    return keys_of(_ids(column, schema.hash), schema.item.id_type, schema.hash, where)


def event_records(table: pa.Table, event: EventType, schema: Schema) -> Records:
    """Event records of rows of an events table that all have type `event`."""
    records = np.zeros(len(table), dtype=event_dtype(event))
    records[ITEM] = item_keys_of(table["item_id"], schema, "events.parquet: item_id")
    records[TIME_MS], records[ARRIVAL_MS] = int64_of(table["time_ms"]), int64_of(table["arrival_ms"])
    attributes = records_of(table, event.attributes, schema, "events.parquet", f"{event.name}.")
    for f in event.attributes:
        records[f.name] = attributes[f.name]
    return records


def _ids(column: pa.ChunkedArray | pa.Array, hash_spec: HashSpec) -> Any:
    """Keys int64 [N] of texts, each distinct one hashed once, or of integers (ids or keys); `MISSING_KEY` for null."""
    if pa.types.is_string(column.type):
        encoded = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).dictionary_encode()
        keys = np.append(string_keys(encoded.dictionary.to_pylist(), hash_spec), np.int64(MISSING_KEY))
        return keys[pc.fill_null(encoded.indices, len(keys) - 1).to_numpy(zero_copy_only=False)]
    return np.asarray(pc.fill_null(column.cast(pa.int64()), MISSING_KEY).to_numpy(zero_copy_only=False))


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """All values of a list column, in order."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten()


def offsets_of(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """Row boundaries of a list column, from 0."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _numbers(table: pa.Table, name: str, rows: int, dtype: Any, missing: float) -> NDArray[Any]:
    """A flat list column aligned with the shown items; a null row or an absent column is all missing."""
    out = np.full(rows, missing, dtype=dtype)
    if name not in table.column_names:
        return out
    column, bounds = table[name], offsets_of(table["items"])
    sizes, given = np.diff(bounds), np.diff(offsets_of(column))
    present = pc.is_valid(column).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(present & (sizes != given))
    if len(wrong):
        raise FieldError(
            f"requests.parquet: {name}", f"{sizes[wrong[0]]} values (as `items`) in row {wrong[0]}", str(given[wrong[0]])
        )
    values = pc.fill_null(flat(column).cast(pa.float64()), float("nan") if dtype != np.int32 else float(missing))
    out[np.repeat(present, sizes)] = values.to_numpy(zero_copy_only=False)
    return out


def _labels(table: pa.Table, name: str, rows: int) -> NDArray[np.float32]:
    """Labels 0 and 1, NaN where unknown."""
    labels = _numbers(table, name, rows, np.float32, np.nan)
    wrong = labels[(labels != 0) & (labels != 1) & ~np.isnan(labels)]
    if len(wrong):
        raise FieldError(f"requests.parquet: {name}", "labels 0, 1 or null", f"{wrong[0]:g}")
    return labels


def int64_of(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column of integers without nulls."""
    return np.asarray(column.to_numpy(), dtype=np.int64)
