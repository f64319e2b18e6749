"""Wire columns (`FeatureColumn`, `ItemIds`) → numpy keys, records and request columns.

Everything a caller sends is checked against the schema here, sizes first: nothing is allocated for
rows that the schema does not allow. Packed numbers go into numpy in one step; only strings are
touched one by one (they are hashed). No logic beyond conversion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kunlun.v1 import types_pb2
from model.hashing import MISSING_KEY, string_keys
from model.records import Records, feature_dtype, fill_multi_column, fill_scalar_column, missing_records
from model.schema import Feature, FeatureKind, IdType, Schema
from serving.core.errors import InvalidField
from serving.core.types import Overrides
from serving.protocol.limits import MAX_ITEM_KEY, unknown

_INT64, _FLOAT, _STRING = "int64_values", "float_values", "string_values"


def item_keys(field: str, items: types_pb2.ItemIds, schema: Schema, at_most: int) -> NDArray[np.int64]:
    """Keys int64 [N] of 1 to `at_most` distinct items; raises `InvalidField`."""
    strings = schema.item.id_type is IdType.STRING
    given, other = ("keys", "ids") if strings else ("ids", "keys")
    count, stray = len(getattr(items, given)), len(getattr(items, other))
    if stray:
        raise InvalidField(f"{field}.{other}", f"none: the schema identifies items by {given}", f"{stray}")
    if not 0 < count <= at_most:
        raise InvalidField(f"{field}.{given}", f"1 to {at_most} item(s)" if at_most > 1 else "exactly one item", f"{count}")
    if strings:
        texts = list(items.keys)  # one pass over the message; a repeated field is slow to walk
        lengths = list(map(len, texts))
        if not 0 < min(lengths) <= max(lengths) <= MAX_ITEM_KEY:
            at = next(i for i, length in enumerate(lengths) if not 0 < length <= MAX_ITEM_KEY)
            raise InvalidField(f"{field}.keys[{at}]", f"1 to {MAX_ITEM_KEY} characters", f"{lengths[at]}")
        keys = string_keys(texts, schema.hash)
    else:
        keys = np.array(items.ids, dtype=np.int64)
    _check_keys(f"{field}.{given}", keys, getattr(items, given))
    return keys


def _check_keys(field: str, keys: NDArray[np.int64], given: Sequence[Any]) -> None:
    """Distinct, and none that stands for a missing value."""
    ordered = np.sort(keys)
    if ordered[0] == MISSING_KEY:
        raise InvalidField(field, "ids above -2^63", str(MISSING_KEY))
    if len(keys) > 1 and bool((ordered[1:] == ordered[:-1]).any()):
        first: dict[int, int] = {}
        for at, key in enumerate(keys.tolist()):
            if key in first:
                raise InvalidField(f"{field}[{at}]", "distinct items", f"{given[at]!r}, which is also at {first[key]}")
            first[key] = at


class ColumnReader:
    """Reads the columns of one group of features; built once per schema and group.

    `what` names the group in errors. `floats` are the names beside the features that take one plain
    number per row (request columns).
    """

    def __init__(self, schema: Schema, features: Iterable[Feature], what: str, floats: Sequence[str] = ()) -> None:
        every = tuple(features)
        self._hash, self._what = schema.hash, what
        self.dtype = feature_dtype(every)
        self._features = {f.name: f for f in every if f.derived is None}
        self._derived = {f.name: f.derived for f in every if f.derived is not None}
        self._floats = frozenset(floats)

    def records(self, field: str, columns: Sequence[types_pb2.FeatureColumn], rows: int = 1) -> Records:
        """Whole records [rows]; features that were not sent are missing. Raises `InvalidField` or `FieldError`."""
        records = missing_records(self.dtype, rows)
        for column in self._checked(field, columns):
            self._fill(records, column, f"{field}.{column.name}")
        return records

    def overrides(
        self, field: str, columns: Sequence[types_pb2.FeatureColumn], rows: int
    ) -> tuple[Overrides | None, Mapping[str, NDArray[np.float64]]]:
        """Records [rows] of the features that were sent (None if none was), and the plain number columns."""
        sent, plain = [], {}
        for column in self._checked(field, columns):
            if column.name in self._floats:
                plain[column.name] = _numbers(f"{field}.{column.name}", column, rows)
            else:
                sent.append(column)
        if not sent:
            return None, plain
        records = missing_records(self.dtype, rows)
        for column in sent:
            self._fill(records, column, f"{field}.{column.name}")
        return Overrides(records, tuple(c.name for c in sent)), plain

    def _checked(self, field: str, columns: Sequence[types_pb2.FeatureColumn]) -> Iterable[types_pb2.FeatureColumn]:
        seen: set[str] = set()
        for column in columns:
            name = column.name
            if name in self._derived:
                raise InvalidField(f"{field}.{name}", "no value: the server computes it", "a column")
            if name not in self._features and name not in self._floats:
                raise unknown(field, self._what, name, [*self._features, *self._floats])
            if name in seen:
                raise InvalidField(f"{field}.{name}", "one column", "two")
            seen.add(name)
            yield column

    def _fill(self, records: Records, column: types_pb2.FeatureColumn, where: str) -> None:
        feature = self._features[column.name]
        values = _values(where, column, _accepted(feature))
        if feature.kind is FeatureKind.MULTI:
            if len(column.offsets) != len(records) + 1:
                raise InvalidField(f"{where}.offsets", f"{len(records) + 1} offsets (rows + 1)", f"{len(column.offsets)}")
            offsets = np.array(column.offsets, dtype=np.int64)
            fill_multi_column(records, feature, values, offsets, self._hash, where)  # type: ignore[arg-type]
        else:
            _no_offsets(where, column)
            fill_scalar_column(records, feature, values, self._hash, where)


def _accepted(feature: Feature) -> tuple[str, ...]:
    if feature.kind is FeatureKind.NUMERIC:
        return (_FLOAT, _INT64)
    return (_STRING,) if feature.id_type is IdType.STRING else (_INT64,)


def _values(where: str, column: types_pb2.FeatureColumn, accepted: tuple[str, ...]) -> Any:
    """The column's values: strings, int64, float32, or float64 for integers that are taken as numbers."""
    kind = column.WhichOneof("values")
    if kind not in accepted:
        if kind is None or len(getattr(column, kind).values):
            raise InvalidField(where, accepted[0], kind or "no values")
        kind = accepted[0]  # rows without values: a client cannot tell of which kind they are none
    if kind == _STRING:
        return column.string_values.values
    if kind == _FLOAT:
        return np.array(column.float_values.values, dtype=np.float32)
    numbers = np.array(column.int64_values.values, dtype=np.int64)
    return numbers if _FLOAT not in accepted else numbers.astype(np.float64)


def _numbers(where: str, column: types_pb2.FeatureColumn, rows: int) -> NDArray[np.float64]:
    """A request column: one finite number per row, float64 [rows]."""
    values = np.asarray(_values(where, column, (_FLOAT, _INT64)), dtype=np.float64)
    _no_offsets(where, column)
    if len(values) != rows:
        raise InvalidField(where, f"{rows} value(s), one per candidate", f"{len(values)}")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InvalidField(f"{where}[{at}]", "finite numbers", str(values[at]))
    return values


def _no_offsets(where: str, column: types_pb2.FeatureColumn) -> None:
    if len(column.offsets):
        raise InvalidField(f"{where}.offsets", "none: the feature has one value per row", f"{len(column.offsets)}")
