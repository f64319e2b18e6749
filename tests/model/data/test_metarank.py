"""The Metarank adapter keeps what it can use and says, with counts and places, what it cannot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import ConfigError, parse_yaml
from model.data.metarank import convert_metarank
from model.data.request_log import load_request_log
from model.hashing import MISSING_KEY, string_keys
from model.schema import Feature, FeatureKind, Schema

SCHEMA = parse_yaml(
    Schema,
    """
name: films
tables: {item: {width: 4}, genre: {width: 4}}
item: {id_type: string, table: item}
item_features:
  - {name: genres, kind: multi, table: genre, max_values: 2}
  - {name: year, kind: numeric}
events: [{name: click, cap: 4}, {name: impression, cap: 8}]
tasks: [{name: click}]
value: p_click
""",
)


def item(name: str, **fields: Any) -> dict[str, Any]:
    entries = [{"name": k, "value": v} for k, v in fields.items()]
    return {"event": "item", "id": f"e-{name}", "item": name, "timestamp": "1", "fields": entries}


def ranking(name: str, user: str, time_ms: int, *items: str) -> dict[str, Any]:
    shown = [{"id": i} for i in items]
    return {"event": "ranking", "id": name, "user": user, "timestamp": str(time_ms), "items": shown, "fields": []}


def click(name: str, of: str, what: str, time_ms: int) -> dict[str, Any]:
    return {"event": "interaction", "type": "click", "id": name, "ranking": of, "item": what, "user": "u", "timestamp": time_ms}


GOOD = [
    item("a", genres=["x", "y", "z"], year=1990.0, title="A"),
    item("b", genres=[], year=None),
    ranking("r1", "u", 1_000, "a", "b"),
    click("c1", "r1", "b", 1_500),
    ranking("r2", "u", 2_000, "b", "c"),
    ranking("r3", "v", 2_500, "a"),
]


def written(path: Path, events: list[Any], zipped: bool = False) -> Path:
    text = "\n".join(e if isinstance(e, str) else json.dumps(e) for e in events) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_rankings_become_requests_with_labels_and_histories(tmp_path: Path, zipped: bool) -> None:
    info = convert_metarank(written(tmp_path / "log", GOOD, zipped), tmp_path / "out", SCHEMA)
    log = load_request_log(tmp_path / "out")
    assert info["rejected"] == {}
    assert info["counts"]["positives"] == {"click": 1}
    assert info["notes"]["shown item without an item event (its features are missing)"]["rows"] == 1
    assert info["notes"]["item field 'title', which the schema does not declare"]["rows"] == 1
    assert log.request_ids == ["r1", "r2", "r3"]
    assert [log.item_ids[i] for i in log.item_index] == ["a", "b", "b", "c", "a"]
    assert log.labels[:, 0].tolist() == [0, 1, 0, 0, 0]
    assert log.positions.tolist() == [0, 1, 0, 1, 0]
    assert [len(h) for h in log.histories(0).values()] == [0, 0]
    second = log.histories(1)
    assert second["click"]["time_ms"].tolist() == [1_500]
    assert second["click"]["item"].tolist() == [log.item_keys[log.item_ids.index("b")]]
    assert second["impression"]["time_ms"].tolist() == [1_000, 1_000]
    assert np.isnan(log.items["year"][log.item_ids.index("c")])


def test_events_carry_the_item_features_that_their_type_declares(tmp_path: Path) -> None:
    genres = SCHEMA.item_features[0]
    other = Feature(name="where", kind=FeatureKind.CATEGORICAL, table="genre")
    shown = SCHEMA.event("impression").model_copy(update={"attributes": (genres, other)})
    first = genres.model_copy(update={"table": "item", "max_values": 1})  # the same feature, read another way
    clicked = SCHEMA.event("click").model_copy(update={"attributes": (first,)})
    schema = SCHEMA.model_copy(update={"events": (clicked, shown)})
    convert_metarank(written(tmp_path / "log", [*GOOD, click("c2", "r1", "a", 1_600)]), tmp_path / "out", schema)
    log = load_request_log(tmp_path / "out")
    assert log.events["click"].records["genres"].tolist() == [[MISSING_KEY], string_keys(["x"], schema.hash).tolist()]
    seen = {log.item_ids[log.item_keys.tolist().index(e["item"])]: e for e in log.events["impression"].records}
    assert seen["a"]["genres"].tolist() == string_keys(["x", "y"], schema.hash).tolist()
    assert (seen["b"]["genres"] == MISSING_KEY).all()
    assert (seen["c"]["genres"] == MISSING_KEY).all(), "no item event"
    assert all(e["where"] == MISSING_KEY for e in seen.values())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not json", "not valid JSON"),
        ("[1]", "not a JSON object but a list"),
        ({"event": "purchase"}, "unknown event kind 'purchase'"),
        ({"event": "ranking", "id": "r9", "timestamp": "1", "items": []}, "ranking without 'user'"),
        (ranking("r9", "u", 1), "ranking without items"),
        (ranking("r9", "u", 1, "a", "a"), "ranking that shows an item twice"),
        (ranking("r1", "u", 1, "a"), "ranking with an id that was used before"),
        (
            ranking("r9", "u", 1, "a") | {"timestamp": "noon"},
            "ranking with a timestamp that is not in milliseconds since the epoch",
        ),
        (click("c9", "r9", "a", 1), "interaction for a ranking that was not seen"),
        (click("c9", "r1", "c", 1), "interaction with an item that its ranking did not show"),
        (click("c1", "r1", "b", 1), "interaction with an id that was used before"),
        (click("c9", "r1", "b", 1) | {"type": "like"}, "interaction of type 'like', which the schema does not declare"),
        (item("d", year="old"), "item field 'year': expected a finite number, found str"),
    ],
)
def test_a_bad_row_is_rejected_with_reason_and_line(tmp_path: Path, bad: Any, reason: str) -> None:
    info = convert_metarank(written(tmp_path / "log", [*GOOD, bad]), tmp_path / "out", SCHEMA)
    assert info["rejected"] == {reason: {"rows": 1, "first": ["line 7"]}}
    assert len(load_request_log(tmp_path / "out")) == 3


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    whole = written(tmp_path / "log", GOOD, zipped=True)
    whole.write_bytes(whole.read_bytes()[:10] + b"\xff" * 40)
    with pytest.raises(ConfigError, match="log: cannot be read: "):
        convert_metarank(whole, tmp_path / "out", SCHEMA)


def test_a_file_without_rankings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log: no usable ranking; rejected: 1 × not valid JSON \(first: line 1\)"):
        convert_metarank(written(tmp_path / "log", ["?"]), tmp_path / "out", SCHEMA)


def test_another_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"exists and is not a canonical log"):
        convert_metarank(written(tmp_path / "log", GOOD), tmp_path / "mine", SCHEMA)
    assert (tmp_path / "mine" / "thesis.txt").is_file()
