"""The canonical log round-trips into arrays, and a file that does not fit is refused by file, column, expected, found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.config import ConfigError, parse_yaml
from model.data.canonical import LogFile, write_log
from model.data.request_log import load_request_log
from model.hashing import MISSING_KEY, string_key
from model.schema import HashSpec, Schema

SCHEMA = parse_yaml(
    Schema,
    """
name: shop
tables: {item: {width: 4}, word: {width: 4}}
item: {id_type: int64, table: item}
user: [{name: age, kind: numeric}]
context: [{name: surface, kind: categorical, table: word}, {name: hour, kind: numeric, derived: hour_of_day}]
item_features: [{name: tags, kind: multi, table: word, max_values: 3}]
request_columns: [bid]
events: [{name: click, cap: 2, attributes: [{name: dwell, kind: numeric}]}, {name: buy, cap: 2}]
tasks: [{name: click}, {name: buy}]
value: bid * p_click * p_buy
""",
)


def tables() -> dict[LogFile, dict[str, Any]]:
    """Two users; user `late` has no row, item 30 has no row; requests are not in time order; a click arrives late."""
    return {
        LogFile.REQUESTS: {
            "request_id": ["r2", "r1", "r3"],
            "time_ms": [2_000, 1_000, 3_000],
            "user_id": ["u", "u", "late"],
            "surface": ["feed", None, "feed"],
            "items": [[20, 30], [10], [10, 20, 30]],
            "positions": [[0, 1], None, [2, 1, 0]],
            "label_click": [[1, 0], [1], [0, None, 1]],
            "label_buy": [[0, 0], None, [0, 0, 1]],
            "column_bid": [[0.5, 1.5], [2.0], [1.0, 1.0, 1.0]],
        },
        LogFile.ITEMS: {"item_id": [10, 20], "tags": [["a", "b"], None]},
        LogFile.USERS: {"user_id": ["u"], "age": [33.0]},
        LogFile.EVENTS: {
            "event_id": ["e1", "e2", "e3", "e4", "e5"],
            "user_id": ["u", "u", "u", "u", "w"],
            "type": ["click", "click", "click", "buy", "click"],
            "item_id": [10, 20, 30, 10, 10],
            "time_ms": [500, 600, 700, 800, 1],
            "arrival_ms": [510, 2_500, 710, 2_000, 2],
            "click.dwell": [1.0, None, 3.0, None, 5.0],
        },
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log", SCHEMA, tables(), {"source": {"kind": "test"}})


def test_rows_become_arrays_in_time_order(directory: Path) -> None:
    log = load_request_log(directory)
    assert log.schema == SCHEMA
    assert log.request_ids == ["r1", "r2", "r3"]
    assert log.offsets.tolist() == [0, 1, 3, 6]
    assert [log.item_ids[i] for i in log.item_index] == [10, 20, 30, 10, 20, 30]
    assert log.positions.tolist() == [-1, 0, 1, 2, 1, 0]
    np.testing.assert_array_equal(log.labels, [[1, np.nan], [1, 0], [0, 0], [0, 0], [np.nan, 0], [1, 1]])
    assert log.columns["bid"].tolist() == [2.0, 0.5, 1.5, 1.0, 1.0, 1.0]
    assert log.truth is None
    assert log.contexts["surface"].tolist() == [MISSING_KEY, *[string_key("feed", SCHEMA.hash)] * 2]
    assert log.item_keys.tolist() == log.item_ids == [10, 20, 30]
    assert log.items["tags"].tolist()[0] == [string_key("a", SCHEMA.hash), string_key("b", SCHEMA.hash), MISSING_KEY]
    assert set(log.items["tags"][1:].ravel().tolist()) == {MISSING_KEY}
    assert log.user_ids[log.user_index[2]] == "late"
    assert np.isnan(log.users["age"][log.user_index[2]])
    assert log.users["age"][log.user_index[0]] == 33.0


def test_histories_hold_what_had_arrived_strictly_before_in_event_order(directory: Path) -> None:
    log = load_request_log(directory)
    first, second, third = (log.histories(r) for r in range(3))
    assert first["click"]["item"].tolist() == [10, 30]  # e2 happened before, but arrives at 2,500
    assert first["click"]["dwell"].tolist() == [1.0, 3.0]
    assert second["click"]["item"].tolist() == [10, 30]
    assert len(second["buy"]) == 0  # arrives at the very moment of the request
    assert [len(h) for h in third.values()] == [0, 0]
    arrivals = log.events["click"].of_user(int(log.user_index[0]))["arrival_ms"]
    assert arrivals.tolist() == [510, 710, 2_500]


def test_a_late_arrival_is_placed_by_its_event_time(tmp_path: Path) -> None:
    changed = tables()
    changed[LogFile.REQUESTS]["time_ms"] = [2_600, 1_000, 3_000]
    log = load_request_log(write_log(tmp_path / "log", SCHEMA, changed, {}))
    assert log.histories(1)["click"]["item"].tolist() == [20, 30]  # cap 2: the newest two by event time


def keyed(values: Any, spec: HashSpec) -> Any:
    """Strings as their keys, at any depth."""
    if isinstance(values, list):
        return [keyed(value, spec) for value in values]
    return string_key(values, spec) if isinstance(values, str) else values


@pytest.mark.parametrize("files", [list(LogFile), [LogFile.REQUESTS], [LogFile.ITEMS, LogFile.EVENTS]])
def test_keys_in_place_of_strings_load_to_the_same_arrays(tmp_path: Path, files: list[LogFile]) -> None:
    data = SCHEMA.model_dump(mode="json")
    data["item"]["id_type"] = "string"
    data["item_features"] += [{"name": "brand", "kind": "categorical", "table": "word"}]
    data["events"][0]["attributes"] += [{"name": "where", "kind": "categorical", "table": "word"}]
    schema = Schema.model_validate(data)
    texts = tables()
    texts[LogFile.REQUESTS]["items"] = [[f"i{i}" for i in row] for row in texts[LogFile.REQUESTS]["items"]]
    texts[LogFile.ITEMS] |= {"item_id": ["i10", "i20"], "tags": [["a", None, "b"], None], "brand": ["x", None]}
    texts[LogFile.EVENTS]["item_id"] = [f"i{i}" for i in texts[LogFile.EVENTS]["item_id"]]
    texts[LogFile.EVENTS]["click.where"] = ["home", None, "feed", None, "feed"]
    hashed = {file: dict(columns) for file, columns in texts.items()}
    ids = {"items", "item_id", "tags", "brand", "surface", "click.where"}
    for file in files:
        for name in ids & hashed[file].keys():
            hashed[file][name] = pa.array(keyed(texts[file][name], schema.hash))
    if LogFile.ITEMS in files:
        hashed[LogFile.ITEMS]["brand"] = pa.array([string_key("x", schema.hash), MISSING_KEY])
    a = load_request_log(write_log(tmp_path / "texts", schema, texts, {}))
    b = load_request_log(write_log(tmp_path / "keys", schema, hashed, {}))
    for name in ("item_keys", "item_index", "items", "contexts", "users", "user_keys", "labels", "offsets"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    for event in schema.events:
        assert a.events[event.name].records.tobytes() == b.events[event.name].records.tobytes()
    assert a.item_ids[:2] == ["i10", "i20"]
    by_key = LogFile.ITEMS in files or LogFile.REQUESTS in files
    assert b.item_ids == (a.item_keys.tolist() if by_key else a.item_ids)


def test_ids_of_users_are_never_keys(tmp_path: Path) -> None:
    changed = tables()
    changed[LogFile.USERS]["user_id"] = pa.array([1])
    with pytest.raises(ConfigError, match=re.escape("column 'user_id': expected string, found int64")):
        write_log(tmp_path / "log", SCHEMA, changed, {})


def test_a_subset_keeps_the_given_order_and_shares_users_items_and_events(directory: Path) -> None:
    log = load_request_log(directory)
    part = log.subset(np.array([2, 0]))
    assert part.request_ids == ["r3", "r1"]
    assert part.offsets.tolist() == [0, 3, 4]
    assert part.positions.tolist() == [2, 1, 0, -1]
    assert part.columns["bid"].tolist() == [1.0, 1.0, 1.0, 2.0]
    assert part.items is log.items
    assert log.subset(np.array([True, False, True])).request_ids == ["r1", "r3"]
    assert len(log.subset(np.zeros(3, dtype=bool)).item_index) == 0


@pytest.mark.parametrize(
    ("file", "column", "values", "message"),
    [
        (LogFile.REQUESTS, "time_ms", ["x", "y", "z"], "column 'time_ms': expected int64, found string"),
        (LogFile.REQUESTS, "user_id", ["u", None, "u"], "column 'user_id': expected a value in every row, found 1 null(s)"),
        (LogFile.REQUESTS, "items", [["a"], ["b"], ["c"]], "column 'items': expected list<item: int64>, found list<"),
        (
            LogFile.ITEMS,
            "tags",
            [1.5, 2.5],
            "column 'tags': expected list<item: string> (or its keys, list<item: int64>), found double",
        ),
        (LogFile.EVENTS, "arrival_ms", None, "column 'arrival_ms': expected int64, found no such column"),
        (LogFile.REQUESTS, "request_id", ["r1", "r1", "r2"], "column 'request_id': expected distinct ids, found 1 repeated"),
        (
            LogFile.REQUESTS,
            "items",
            [[1, None], [1], [1, 2, 3]],
            "expected an id in every entry, found 1 null(s)",
        ),
        (
            LogFile.REQUESTS,
            "label_click",
            [[1], [1], [1, 0, 0]],
            "label_click: expected 2 values (as `items`)",
        ),
        (LogFile.REQUESTS, "label_click", [[1, 2], [1], [1, 0, 0]], "label_click: expected labels 0, 1 or null, found 2"),
        (LogFile.EVENTS, "type", ["like"] * 5, "column 'type': expected one of click, buy, found like"),
        (LogFile.EVENTS, "event_id", ["e"] * 5, "column 'event_id': expected distinct ids per user, found 3 repeated"),
        (LogFile.ITEMS, "tags", [["a"] * 4, []], "tags: expected at most 3 values per row, found 4"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(directory: Path, file: LogFile, column: str, values: Any, message: str) -> None:
    path = directory / f"{file}.parquet"
    table = pq.read_table(path)
    at = table.column_names.index(column)
    table = table.remove_column(at) if values is None else table.set_column(at, column, pa.array(values))
    pq.write_table(table, path)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_request_log(directory)
    assert f"{file}.parquet" in str(caught.value)


def test_writing_refuses_what_the_schema_does_not_declare(tmp_path: Path) -> None:
    changed = tables()
    changed[LogFile.ITEMS]["colour"] = ["red", "blue"]
    with pytest.raises(ConfigError, match="column 'colour': expected one of item_id, tags, found an undeclared column"):
        write_log(tmp_path / "log", SCHEMA, changed, {})
    assert list(tmp_path.iterdir()) == []


def test_a_down_sampled_log_says_so_and_its_all_zero_items_count_for_those_that_are_gone(tmp_path: Path) -> None:
    log = load_request_log(write_log(tmp_path / "log", SCHEMA, tables(), {"negative_rate": 0.25}))
    assert log.negative_rate == 0.25
    assert log.negatives().tolist() == [False, False, True, True, False, False]  # an unknown label is not 0
    assert log.weights().tolist() == [1, 1, 4, 4, 1, 1]
    assert log.subset(np.array([2])).weights().tolist() == [4, 1, 1]
    assert log.rows_of(np.array([2, 0])).tolist() == [3, 4, 5, 0]


def test_a_log_that_says_nothing_is_complete(directory: Path) -> None:
    log = load_request_log(directory)
    assert log.negative_rate == 1
    assert log.weights().tolist() == [1] * 6


@pytest.mark.parametrize("rate", [0, 1.5, -0.1, "0.1", True, None])
def test_a_rate_of_down_sampling_that_is_none_is_refused(directory: Path, tmp_path: Path, rate: Any) -> None:
    message = re.escape(f"dataset.json: negative_rate: expected a number above 0 and at most 1, found {rate!r}")
    with pytest.raises(ConfigError, match=message):
        write_log(tmp_path / "other", SCHEMA, tables(), {"negative_rate": rate})
    (directory / "dataset.json").write_text(json.dumps({"negative_rate": rate}))
    with pytest.raises(ConfigError, match=message):
        load_request_log(directory)


def test_a_directory_without_a_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a canonical log \(no schema.yaml\)"):
        load_request_log(tmp_path)
