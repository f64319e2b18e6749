"""Cells of delimited files as values of features and ids; and whole files of features by id.

A cell that cannot be taken raises `CellRejected` with a reason that names its column; whoever reads the file counts it with
the line number. Multi-valued features are written ``a|b``; an empty cell is a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from model.data.delimited import Delimited
from model.data.rejects import Tally
from model.schema import Feature, FeatureKind, IdType

VALUES_SEPARATOR = "|"


class TimeUnit(StrEnum):
    """What times are written in: seconds or milliseconds since the epoch, or ISO 8601 (UTC unless it says otherwise)."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    ISO = "iso"


class CellRejected(Exception):
    """A cell that cannot be taken; the text is the reason it is counted under."""


def features_by_id(
    file: Delimited,
    identity: str,
    id_type: IdType,
    features: Sequence[Feature],
    rejected: Tally,
    notes: Tally,
) -> dict[Any, dict[str, Any]]:
    """Features by id of a file with a column `identity` and columns named like features; other columns are noted."""
    names = file.names()
    known = [f for f in features if f.name in names]
    for name in names:
        if name != identity and name not in {f.name for f in features}:
            notes.add(f"column {name!r}, which the schema does not declare", file.path.name)
    rows: dict[Any, dict[str, Any]] = {}
    for line, (key, *cells) in file.rows([identity, *(f.name for f in known)], rejected):
        try:
            found = id_of(key, identity, id_type)
            if found in rows:
                raise CellRejected(f"{identity}: an id that was given before")
            rows[found] = {f.name: value_of(cell, f) for f, cell in zip(known, cells, strict=True)}
        except CellRejected as reason:
            rejected.add(str(reason), f"{file.path.name} line {line}")
    return rows


def value_of(cell: str, feature: Feature) -> Any:
    """A cell in the feature's type, None where it is empty."""
    if not cell:
        return None
    if feature.kind is FeatureKind.NUMERIC:
        return number_of(cell, feature.name)
    if feature.kind is FeatureKind.MULTI:
        values = [v for v in cell.split(VALUES_SEPARATOR) if v][: feature.max_values]
        return [id_of(v, feature.name, feature.id_type) for v in values]
    return id_of(cell, feature.name, feature.id_type)


def text_of(cell: str, column: str) -> str:
    """An id as text."""
    if not cell:
        raise CellRejected(f"{column}: expected an id, found an empty cell")
    return cell


def id_of(cell: str, column: str, id_type: IdType) -> Any:
    """An id: text, or an int64."""
    text = text_of(cell, column)
    if id_type is IdType.STRING:
        return text
    try:
        number = int(text)
    except ValueError:
        number = 1 << 63
    if not -(1 << 63) < number < 1 << 63:
        raise CellRejected(f"{column}: expected an integer, found other text")
    return number


def number_of(cell: str, column: str) -> float:
    """A finite number."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CellRejected(f"{column}: expected a finite number, found other text")
    return value


def time_ms_of(cell: str, column: str, unit: TimeUnit) -> int:
    """A time in milliseconds since the epoch."""
    if unit is TimeUnit.ISO:
        try:
            moment = datetime.fromisoformat(cell)
        except ValueError:
            raise CellRejected(f"{column}: expected a time in ISO 8601, found other text") from None
        time_ms = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    else:
        value = number_of(cell, column)
        if unit is TimeUnit.SECONDS and value > 1e11:
            raise CellRejected(
                f"{column}: expected seconds since the epoch, found a far future; milliseconds (--time-unit ms)?"
            )
        time_ms = round(value * 1000) if unit is TimeUnit.SECONDS else int(value)
    if not 0 <= time_ms < 1 << 62:
        raise CellRejected(f"{column}: expected a time since the epoch, found one before it or too far after it")
    return time_ms
