"""A canonical log larger than memory: the arrays of a `RequestLog` in memory-mapped files, made once from the Parquet files.

A training example needs its user's events up to a moment, anywhere in the log, which row groups cannot be asked for. So the
Parquet files are read once, some thousand rows at a time, and written as fixed-width arrays: requests in time order with
their shown items, events by user and arrival. The files lie in ``.mapped`` beside them (or in `cache`), are made anew when the
Parquet files change, and appear complete or not at all; of several processes that need them one makes them, the others wait.

In memory, for every request and user a few numbers, the ids of users and items with their features, and nothing per shown
item or event. Mapped pages that are read or written belong to the page cache, which the system takes back when it needs to.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.config import ConfigError
from model.data.arrow_columns import item_keys_of, records_of
from model.data.canonical import INFO_FILE, SCHEMA_FILE, LogFile, negative_rate_of, read_file
from model.data.map_log import LogWriter
from model.data.mapped_arrays import MappedArrays, bounds_of
from model.data.request_log import ArrivalLog, RequestLog, extended
from model.hashing import string_keys
from model.records import FieldError, event_dtype, feature_dtype
from model.schema import Schema, load_schema

FOLDER, LAYOUT, FORMAT = ".mapped", "layout.json", 1
PARQUET_TO_ARRAYS = 4.0
"""Bytes in memory for a byte of uncompressed Parquet, about: fixed-width records, ids as strings, copies while reading."""


def map_request_log(
    directory: str | Path, cache: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> RequestLog:
    """The log of a directory in mapped files, written first if they are not there; raises as `load_request_log` does.

    `progress` is told rows read so far and in all. `cache`: where the files go instead of ``.mapped`` in `directory`.
    """
    path = Path(directory)
    if not (path / SCHEMA_FILE).is_file():
        raise ConfigError(f"{path}: not a canonical log (no {SCHEMA_FILE}); expected the --output of `kunlun prepare`")
    schema, target = load_schema(path / SCHEMA_FILE), cache or path / FOLDER
    wanted = _fingerprint(path, schema)
    if not _is_made_from(target, wanted):
        if target.exists() and not (target / LAYOUT).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{target}: exists and is not a mapped log; give another folder")
        aside = target.with_name(f"{target.name}.tmp")
        try:
            with _alone(target):
                if not _is_made_from(target, wanted):  # by a process that was here before
                    _make(path, schema, aside, target, wanted, progress)
        except FieldError as error:
            raise ConfigError(f"{path}/{error}") from error
        except OSError as error:
            raise ConfigError(f"{aside}: cannot be written: {error.strerror}; give another folder") from error
    return _open(path, schema, target)


def is_larger_than(directory: str | Path, available_bytes: int) -> bool:
    """Whether the arrays of a log would not fit into so many bytes, by the uncompressed sizes of its Parquet files."""
    total = 0
    for file in (LogFile.REQUESTS, LogFile.EVENTS):
        where = Path(directory) / f"{file}.parquet"
        try:
            metadata = pq.read_metadata(where)
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"{where}: cannot be read as Parquet: {error}") from error
        total += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return total * PARQUET_TO_ARRAYS > available_bytes


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Wait until no other process makes the files of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(
    path: Path, schema: Schema, aside: Path, target: Path, made_from: dict[str, Any], progress: Callable[[int, int], None]
) -> None:
    """Write the files into `aside`, and put them where they belong."""
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        layout = {"format": FORMAT, "made_from": made_from, **LogWriter(path, schema, aside, progress).write()}
        (aside / LAYOUT).write_text(json.dumps(layout, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open(path: Path, schema: Schema, folder: Path) -> RequestLog:
    arrays, layout = MappedArrays(folder), json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
    info_path = path / INFO_FILE
    info = json.loads(info_path.read_text(encoding="utf-8")) if info_path.is_file() else {}
    user_ids, item_ids = _ids(arrays, "users"), _ids(arrays, "items")
    users_table, items_table = (read_file(path, file, schema) for file in (LogFile.USERS, LogFile.ITEMS))
    if layout["is_keyed"]:
        item_keys = np.array(item_ids, np.int64)
    else:
        item_keys = item_keys_of(pa.array(item_ids, items_table["item_id"].type), schema, "items.parquet: item_id")
    stored = feature_dtype([f for f in schema.context if f.derived is None])
    time_ms, tasks = arrays.mapped("time_ms", np.int64), len(schema.tasks)
    contexts = arrays.mapped("context", stored) if stored.itemsize else np.zeros(len(time_ms), stored)
    return RequestLog(
        schema=schema,
        request_ids=arrays.texts("request.text"),
        time_ms=time_ms,
        user_index=arrays.mapped("user", np.int64),
        user_ids=user_ids,
        user_keys=string_keys(user_ids, schema.hash),
        users=extended(records_of(users_table, schema.user, schema, "users.parquet"), len(user_ids)),
        contexts=contexts,
        offsets=bounds_of(arrays.mapped("shown", np.int64)),
        item_index=arrays.mapped("item", np.int64),
        positions=arrays.mapped("position", np.int32),
        labels=arrays.mapped("label", np.float32, tasks),
        columns={c: arrays.mapped(f"column_{c}", np.float32) for c in schema.request_columns},
        truth=arrays.mapped("truth", np.float32, tasks) if layout["has_truth"] else None,
        item_ids=item_ids,
        item_keys=item_keys,
        items=extended(records_of(items_table, schema.item_features, schema, "items.parquet"), len(item_ids)),
        events={
            e.name: ArrivalLog(arrays.mapped(f"{e.name}.offsets", np.int64), arrays.mapped(e.name, event_dtype(e)))
            for e in schema.events
        },
        negative_rate=negative_rate_of(info_path, info),
    )


def _ids(arrays: MappedArrays, name: str) -> list[Any]:
    if (arrays.folder / f"{name}.key").is_file():
        return list(arrays.mapped(f"{name}.key", np.int64).tolist())
    return list(arrays.texts(f"{name}.text"))


def _fingerprint(path: Path, schema: Schema) -> dict[str, Any]:
    """What mapped files are made from: another schema, size or time of a Parquet file makes them stale."""
    try:
        found = {file: (path / f"{file}.parquet").stat() for file in LogFile}
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return {"schema": schema.digest} | {str(file): [s.st_size, s.st_mtime_ns] for file, s in found.items()}


def _is_made_from(folder: Path, fingerprint: dict[str, Any]) -> bool:
    if not (folder / LAYOUT).is_file():
        return False
    layout = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
    return bool(layout.get("format") == FORMAT and layout.get("made_from") == fingerprint)
