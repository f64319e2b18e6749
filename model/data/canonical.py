"""The canonical request log on disk: what every data adapter writes and everything else reads.

A directory of ``schema.yaml``, ``requests.parquet`` (one row per ranking request with its shown
items), ``items.parquet``, ``users.parquet``, ``events.parquet`` and ``dataset.json`` (source, counts,
rejected rows by reason; in a down-sampled log ``negative_rate``, the share kept of the shown items whose
labels are all 0). `columns_of` is the whole contract: column names and Arrow types per file,
derived from the schema. Adapters call `write_log`, `model.data.request_log` calls `read_log`.

Whoever does not know the ids themselves (`kunlun log export` has the server's records) may give *keys*: a column of item
ids, feature values or event attributes that the schema declares as string may hold int64 instead, the strings' keys as
`model.hashing` makes them. Null or `MISSING_KEY` is a missing value there. Such a log loads to the same arrays as the one
with the strings. Ids of users, requests and events stay text.

Invariant: a directory appears complete or not at all; a column that does not fit the schema is
refused with file, column, expected and found. Cost: one pass per file, held in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from model.config import ConfigError
from model.schema import Feature, FeatureKind, IdType, Schema, load_schema

SCHEMA_FILE, INFO_FILE = "schema.yaml", "dataset.json"


class LogError(ConfigError):
    """A canonical log that cannot be used: says file, column (or key), what was expected, what was found."""

    def __init__(self, where: Path | str, column: str, expected: str, found: str) -> None:
        super().__init__(f"{where}: {column}: expected {expected}, found {found}")
        self.column, self.expected, self.found = column, expected, found


class LogFile(StrEnum):
    """The Parquet files of a log."""

    REQUESTS = "requests"
    ITEMS = "items"
    USERS = "users"
    EVENTS = "events"


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, whether the file must have it, whether a cell may be null.

    `keyed`: the type of the same ids as int64 keys, where ids are strings and may be given so.
    """

    type: pa.DataType
    required: bool = True
    nullable: bool = False
    keyed: pa.DataType | None = None

    @property
    def expected(self) -> str:
        """What may be in the file, in words."""
        return str(self.type) if self.keyed is None else f"{self.type} (or its keys, {self.keyed})"


@dataclass(frozen=True)
class CanonicalLog:
    """The parsed files; tables have exactly the columns of `columns_of`, in the declared types (or their keys)."""

    path: Path
    schema: Schema
    tables: Mapping[LogFile, pa.Table]
    info: Mapping[str, Any]
    negative_rate: float
    """Share kept of the shown items whose labels are all 0, in (0, 1]; 1 where ``dataset.json`` does not say."""


def id_type_of(id_type: IdType) -> pa.DataType:
    """Arrow type of ids."""
    return pa.string() if id_type is IdType.STRING else pa.int64()


def columns_of(schema: Schema, file: LogFile) -> dict[str, Column]:
    """Every column a file may have. Event attributes are called ``<event type>.<attribute>``."""
    text, time = pa.string(), pa.int64()
    item = id_type_of(schema.item.id_type)
    item_key = pa.int64() if item == text else None
    if file is LogFile.ITEMS:
        return {"item_id": Column(item, keyed=item_key), **_feature_columns(schema.item_features)}
    if file is LogFile.USERS:
        return {"user_id": Column(text), **_feature_columns(schema.user)}
    if file is LogFile.EVENTS:
        columns = {name: Column(text) for name in ("event_id", "user_id", "type")}
        columns |= {"item_id": Column(item, keyed=item_key), "time_ms": Column(time), "arrival_ms": Column(time)}
        for event in schema.events:
            columns |= _feature_columns(event.attributes, f"{event.name}.")
        return columns
    columns = {"request_id": Column(text), "time_ms": Column(time), "user_id": Column(text)}
    columns |= _feature_columns(tuple(f for f in schema.context if f.derived is None))
    columns["items"] = Column(pa.list_(item), keyed=pa.list_(item_key) if item_key else None)
    columns["positions"] = Column(pa.list_(pa.int32()), required=False, nullable=True)
    columns |= {f"label_{t.name}": Column(pa.list_(pa.uint8()), nullable=True) for t in schema.tasks}
    columns["propensity"] = Column(pa.list_(pa.float32()), required=False, nullable=True)
    columns |= {f"column_{c}": Column(pa.list_(pa.float32()), required=False, nullable=True) for c in schema.request_columns}
    columns |= {f"truth_{t.name}": Column(pa.list_(pa.float32()), required=False) for t in schema.tasks}
    return columns


def write_log(
    directory: str | Path, schema: Schema, tables: Mapping[LogFile, Mapping[str, Any]], info: Mapping[str, Any]
) -> Path:
    """Write a log: per file a mapping of columns (lists, numpy or Arrow arrays); replaces an older log at `directory`.

    Raises `LogError` for a column or a `negative_rate` that does not fit, `ConfigError` when `directory` holds something else.
    """
    target = Path(directory)
    negative_rate_of(target / INFO_FILE, info)
    check_output(target)
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for file in LogFile:
            where = target / f"{file}.parquet"
            declared = columns_of(schema, file)
            given = {n: _array(where, n, v, declared) for n, v in tables[file].items()}
            pq.write_table(fit_table(where, pa.table(given), declared), aside / f"{file}.parquet", compression="zstd")
        text = yaml.safe_dump(schema.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
        (aside / SCHEMA_FILE).write_text(text, encoding="utf-8")
        (aside / INFO_FILE).write_text(json.dumps(dict(info), indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def entity_columns(identity: str, rows: Mapping[Any, Mapping[str, Any]], features: Sequence[Feature]) -> dict[str, list[Any]]:
    """Columns of items.parquet or users.parquet from values by id and feature; what is not there is missing."""
    return {identity: list(rows), **{f.name: [row.get(f.name) for row in rows.values()] for f in features}}


def check_output(target: Path) -> None:
    """Raise `ConfigError` where a log must not be written, for those who work long before they write."""
    if target.exists() and not (target / INFO_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: exists and is not a canonical log (no {INFO_FILE}); give another --output")


def read_log(directory: str | Path) -> CanonicalLog:
    """Read and check a log; raises `ConfigError` (`LogError` for a column)."""
    path = Path(directory)
    if not (path / SCHEMA_FILE).is_file():
        raise ConfigError(f"{path}: not a canonical log (no {SCHEMA_FILE}); expected the --output of `kunlun prepare`")
    schema = load_schema(path / SCHEMA_FILE)
    info_path = path / INFO_FILE
    info = json.loads(info_path.read_text(encoding="utf-8")) if info_path.is_file() else {}
    tables = {file: read_file(path, file, schema) for file in LogFile}
    return CanonicalLog(path, schema, tables, info, negative_rate_of(info_path, info))


def read_file(directory: Path, file: LogFile, schema: Schema) -> pa.Table:
    """Read and check one file of a log; raises as `read_log` does."""
    where = directory / f"{file}.parquet"
    try:
        table = pq.read_table(where)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{where}: cannot be read as Parquet: {error}") from error
    table = fit_table(where, table, columns_of(schema, file))
    check_rows(where, file, table, schema)
    return table


def read_batches(directory: Path, file: LogFile, schema: Schema, rows: int) -> Iterator[pa.Table]:
    """The same by at most `rows` rows at a time. That ids are distinct is checked within a batch only."""
    where, declared = directory / f"{file}.parquet", columns_of(schema, file)
    try:
        parquet = pq.ParquetFile(where)
        wanted = [name for name in declared if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(rows, columns=wanted):
            table = fit_table(where, pa.Table.from_batches([batch]), declared)
            check_rows(where, file, table, schema)
            yield table
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{where}: cannot be read as Parquet: {error}") from error


def negative_rate_of(where: Path, info: Mapping[str, Any]) -> float:
    """`negative_rate` of ``dataset.json``, 1 where it does not say; raises `LogError`."""
    rate = info.get("negative_rate", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise LogError(where, "negative_rate", "a number above 0 and at most 1", repr(rate))
    return float(rate)


def _feature_columns(features: tuple[Feature, ...], prefix: str = "") -> dict[str, Column]:
    columns = {}
    for f in features:
        scalar = pa.float32() if f.kind is FeatureKind.NUMERIC else id_type_of(f.id_type)
        key = pa.int64() if scalar == pa.string() else None
        if f.kind is FeatureKind.MULTI:
            scalar, key = pa.list_(scalar), pa.list_(key) if key else None
        columns[prefix + f.name] = Column(scalar, nullable=True, keyed=key)
    return columns


def _array(where: Path, name: str, values: Any, declared: Mapping[str, Column]) -> pa.Array:
    if name not in declared:
        raise LogError(where, f"column {name!r}", f"one of {', '.join(declared)}", "an undeclared column")
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    column = declared[name]
    try:
        is_keyed = column.keyed is not None and isinstance(values, np.ndarray) and values.dtype == np.int64
        return pa.array(values, type=column.keyed if is_keyed else column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise LogError(where, f"column {name!r}", column.expected, str(error)) from error


def fit_table(where: Path, table: pa.Table, declared: Mapping[str, Column]) -> pa.Table:
    """The declared columns of `table` in the declared types; other columns are left out."""
    fitted: dict[str, pa.ChunkedArray] = {}
    for name, column in declared.items():
        if name not in table.column_names:
            if column.required:
                raise LogError(where, f"column {name!r}", str(column.type), "no such column")
            continue
        values = table[name]
        is_keyed = column.keyed is not None and not _is_null(values.type) and _is_castable(values.type, column.keyed)
        wanted = column.keyed if is_keyed else column.type
        if not _is_castable(values.type, wanted):
            raise LogError(where, f"column {name!r}", column.expected, str(values.type))
        try:
            values = values.cast(wanted)
        except pa.ArrowInvalid as error:
            raise LogError(where, f"column {name!r}", column.expected, str(error)) from error
        if values.null_count and not column.nullable:
            raise LogError(where, f"column {name!r}", "a value in every row", f"{values.null_count:,} null(s)")
        fitted[name] = values
    return pa.table(fitted)


def check_rows(where: Path, file: LogFile, table: pa.Table, schema: Schema) -> None:
    """What types cannot say: ids are distinct (events: per user, as the store drops repeats), types are declared."""
    key = {LogFile.REQUESTS: ["request_id"], LogFile.ITEMS: ["item_id"], LogFile.USERS: ["user_id"]}
    columns = key.get(file, ["user_id", "event_id"])
    repeated = len(table) - len(table.group_by(columns).aggregate([]))
    if repeated:
        raise LogError(
            where, f"column {columns[-1]!r}", "distinct ids" + " per user" * len(columns[1:]), f"{repeated:,} repeated"
        )
    if file is LogFile.EVENTS:
        declared = [e.name for e in schema.events]
        unknown = set(pc.unique(table["type"]).to_pylist()) - set(declared)
        if unknown:
            raise LogError(where, "column 'type'", f"one of {', '.join(declared)}", ", ".join(sorted(unknown)))
    if file is LogFile.REQUESTS:
        nulls = pc.list_flatten(table["items"]).null_count
        if nulls:
            raise LogError(where, "column 'items'", "an id in every entry", f"{nulls:,} null(s)")


def _is_null(found: pa.DataType) -> bool:
    """True for a type without values, alone or in lists: it fits everything, and says nothing."""
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
    return _is_null(found.value_type) if is_list else bool(pa.types.is_null(found))


def _is_castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Widths and encodings may differ; kinds (text, integer, number, list) may not."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        found = found.value_type
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
    if pa.types.is_list(wanted):
        return is_list and _is_castable(found.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(found) or (wanted == pa.uint8() and pa.types.is_boolean(found)))
    return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
