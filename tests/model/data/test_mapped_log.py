"""A mapped log is the loaded one, whatever the order of its files; it notices changes and names mistakes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.config import ConfigError
from model.data import map_log, open_log
from model.data.canonical import LogFile, write_log
from model.data.log_digest import identity_digest, log_digest
from model.data.mapped_log import FOLDER, LAYOUT, is_larger_than, map_request_log
from model.data.open_log import Storage, available_bytes, open_request_log
from model.data.request_log import RequestLog, load_request_log
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.schema import Schema


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 synthetic requests; neither requests nor events in order, users.parquet without some who act."""
    path = tmp_path_factory.mktemp("mapped") / "log"
    generate(SyntheticConfig(requests=300, users=60), path, lambda _: None)
    rng = np.random.default_rng(0)
    for file in (LogFile.REQUESTS, LogFile.EVENTS):
        table = pq.read_table(path / f"{file}.parquet")
        pq.write_table(table.take(pa.array(rng.permutation(len(table)))), path / f"{file}.parquet", row_group_size=70)
    for file, kept in ((LogFile.USERS, 40), (LogFile.ITEMS, 150)):
        pq.write_table(pq.read_table(path / f"{file}.parquet").slice(0, kept), path / f"{file}.parquet")
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_log, "READ_ROWS", 64)
    monkeypatch.setattr(map_log, "SORT_ROWS", 50)


def by_id(log: RequestLog) -> list[Any]:
    """All that a reader can see of a log, with ids in place of numbers."""
    seen = []
    for number in range(len(log)):
        user, rows = int(log.user_index[number]), log.shown(number)
        items = log.item_index[rows]
        seen.append(
            (
                log.request_ids[number],
                int(log.time_ms[number]),
                log.user_ids[user],
                int(log.user_keys[user]),
                log.users[user].tobytes(),
                log.contexts[number].tobytes(),
                [log.item_ids[i] for i in items],
                log.item_keys[items].tolist(),
                log.items[items].tobytes(),
                log.positions[rows].tolist(),
                log.labels[rows].tobytes(),
                None if log.truth is None else log.truth[rows].tobytes(),
                {name: column[rows].tobytes() for name, column in log.columns.items()},
                {name: history.tobytes() for name, history in log.histories(number).items()},
                {name: arrivals.of_user(user).tobytes() for name, arrivals in log.events.items()},
            )
        )
    return seen


def test_a_mapped_log_is_the_loaded_one(directory: Path) -> None:
    mapped, loaded = map_request_log(directory), load_request_log(directory)
    assert by_id(mapped) == by_id(loaded)
    assert identity_digest(mapped) == identity_digest(loaded)
    assert log_digest(mapped) == log_digest(loaded)
    assert mapped.truth is not None
    assert sum(len(a.records) for a in mapped.events.values()) == pq.read_metadata(directory / "events.parquet").num_rows
    assert not [f.name for f in (directory / FOLDER).iterdir() if f.name.endswith(("unsorted", "hash", "sorted"))]


def test_a_log_with_keys_in_place_of_strings_maps_too(tmp_path: Path, directory: Path) -> None:
    loaded = load_request_log(directory)
    tables = {file: pq.read_table(directory / f"{file}.parquet") for file in LogFile}
    key_of = dict(zip(loaded.item_ids, loaded.item_keys.tolist(), strict=True))
    events = tables[LogFile.EVENTS]
    keyed = pa.array([key_of[i] for i in events["item_id"].to_pylist()], pa.int64())
    tables[LogFile.EVENTS] = events.set_column(events.column_names.index("item_id"), "item_id", keyed)
    requests = tables[LogFile.REQUESTS]
    shown = pa.array([[key_of[i] for i in row] for row in requests["items"].to_pylist()], pa.list_(pa.int64()))
    tables[LogFile.REQUESTS] = requests.set_column(requests.column_names.index("items"), "items", shown)
    columns = {file: {n: t[n] for n in t.column_names} for file, t in tables.items()}
    write_log(tmp_path / "log", loaded.schema, columns, {})
    assert by_id(map_request_log(tmp_path / "log")) == by_id(load_request_log(tmp_path / "log"))


def test_files_are_made_once_and_again_when_the_log_changes(tmp_path: Path) -> None:
    generate(SyntheticConfig(requests=20), tmp_path / "log", lambda _: None)
    told: list[tuple[int, int]] = []
    cache = tmp_path / "elsewhere"
    first = map_request_log(tmp_path / "log", cache, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 20
    assert not (tmp_path / "log" / FOLDER).exists()
    told.clear()
    assert by_id(map_request_log(tmp_path / "log", cache, lambda done, total: told.append((done, total)))) == by_id(first)
    assert told == []
    generate(SyntheticConfig(requests=30), tmp_path / "log", lambda _: None)
    assert len(map_request_log(tmp_path / "log", cache)) == 30
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("precious")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "photo.jpg"):
        with pytest.raises(ConfigError, match="exists and is not a mapped log"):
            map_request_log(tmp_path / "log", taken)


def test_two_that_need_the_files_at_once_make_them_once(tmp_path: Path) -> None:
    generate(SyntheticConfig(requests=200), tmp_path / "log", lambda _: None)
    told: list[tuple[int, int]] = []
    found: list[RequestLog] = []
    other = threading.Thread(target=lambda: found.append(map_request_log(tmp_path / "log", progress=lambda *p: told.append(p))))

    def start_the_other(done: int, total: int) -> None:
        if other.ident is None:
            other.start()

    first = map_request_log(tmp_path / "log", progress=start_the_other)
    other.join(60)
    assert by_id(found[0]) == by_id(first)
    assert told == [], "the second one made them again"


def broken(directory: Path, to: Path, file: LogFile, column: str) -> None:
    """A copy of a log whose last row has the id of its first."""
    for source in directory.iterdir():
        if source.is_file():
            (to / source.name).write_bytes(source.read_bytes())
    table = pq.read_table(to / f"{file}.parquet")
    values = table[column].to_pylist()
    extra = table.slice(0, 1)
    assert values
    pq.write_table(pa.concat_tables([table, extra]), to / f"{file}.parquet")


@pytest.mark.parametrize(
    ("file", "column", "message"),
    [
        (LogFile.REQUESTS, "request_id", r"requests.parquet: column 'request_id': expected distinct ids, found 1 repeated"),
        (LogFile.EVENTS, "event_id", r"events.parquet: column 'event_id': expected distinct ids per user, found 1 repeated"),
    ],
)
def test_ids_repeated_anywhere_in_a_file_are_refused(
    tmp_path: Path, directory: Path, file: LogFile, column: str, message: str
) -> None:
    broken(directory, tmp_path, file, column)
    with pytest.raises(ConfigError, match=message):
        map_request_log(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_size_decides_by_the_parquet_files(directory: Path) -> None:
    size = sum(
        g.total_byte_size
        for f in ("requests", "events")
        for m in (pq.read_metadata(directory / f"{f}.parquet"),)
        for g in (m.row_group(i) for i in range(m.num_row_groups))
    )
    assert is_larger_than(directory, size)
    assert not is_larger_than(directory, size * 10)
    with pytest.raises(ConfigError, match="not a canonical log"):
        map_request_log(directory.parent)


def test_an_empty_file_of_events_maps(tmp_path: Path, directory: Path) -> None:
    loaded = load_request_log(directory)
    tables = {file: pq.read_table(directory / f"{file}.parquet") for file in LogFile}
    tables[LogFile.EVENTS] = tables[LogFile.EVENTS].slice(0, 0)
    schema = Schema.model_validate(loaded.schema.model_dump())
    write_log(tmp_path / "log", schema, {f: {n: t[n] for n in t.column_names} for f, t in tables.items()}, {})
    mapped = map_request_log(tmp_path / "log")
    assert by_id(mapped) == by_id(load_request_log(tmp_path / "log"))
    assert (tmp_path / "log" / FOLDER / LAYOUT).is_file()


def test_of_a_limit_what_is_taken_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = open_log.proc_bytes(open_log.STATUS)["VmSize"] + (64 << 20)
    monkeypatch.setattr(open_log.resource, "getrlimit", lambda kind: (limit, limit))
    assert available_bytes() <= 64 << 20


def test_a_log_that_does_not_fit_is_mapped_and_says_so(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    assert available_bytes() > 1 << 20
    open_request_log(directory, Storage.AUTO, tmp_path / "cache", notes.append)
    assert notes == []
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("model.data.open_log.available_bytes", lambda: 10_000)
    open_request_log(directory, Storage.AUTO, tmp_path / "cache", notes.append)
    assert "larger than half of the 0.0 GB of available memory: read from mapped files" in notes[0]
    assert (tmp_path / "cache" / LAYOUT).is_file()
