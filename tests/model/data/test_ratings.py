"""Ratings become requests and histories as a server would have seen them; mistakes name line and column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from kunlun.cli import main
from model.config import PRESETS, ConfigError
from model.data.cells import TimeUnit
from model.data.delimited import Delimited
from model.data.ratings import RatingsConfig, convert_ratings
from model.data.request_log import RequestLog, load_request_log
from model.hashing import string_keys
from model.records import ITEM
from model.schema import Schema, load_schema

SCHEMA = load_schema(PRESETS / "ratings.schema.yaml")
RATINGS = """userId,movieId,rating,timestamp
1,10,4.0,100
1,11,2.5,100
1,12,5.0,200
2,10,3.0,150
2,"13",4.5,300
"""
ITEMS = """movieId,title,genres
10,"Heat, the film",Crime|Drama
11,Casino,Crime
"""


def converted(tmp_path: Path, text: str = RATINGS, config: RatingsConfig | None = None, schema: Schema = SCHEMA) -> RequestLog:
    source = tmp_path / "ratings.csv"
    source.write_text(text)
    (tmp_path / "movies.csv").write_text(ITEMS)
    convert_ratings(
        Delimited(source), tmp_path / "log", schema, config or RatingsConfig(), items=Delimited(tmp_path / "movies.csv")
    )
    return load_request_log(tmp_path / "log")


def keys(log: RequestLog, *items: str) -> list[int]:
    return string_keys(list(items), log.schema.hash).tolist()


def test_ratings_of_one_moment_are_one_request_and_see_only_what_came_before(tmp_path: Path) -> None:
    log = converted(tmp_path)
    shown = {r: [log.item_ids[i] for i in log.item_index[log.shown(n)]] for n, r in enumerate(log.request_ids)}
    assert shown == {"1/100000": ["10", "11"], "2/150000": ["10"], "1/200000": ["12"], "2/300000": ["13"]}
    labels = {r: log.labels[log.shown(n), 0].tolist() for n, r in enumerate(log.request_ids)}
    assert labels == {"1/100000": [1, 0], "2/150000": [0], "1/200000": [1], "2/300000": [1]}
    assert (log.positions == -1).all()
    seen = [log.histories(n) for n in range(4)]
    assert [len(h["like"]) + len(h["dislike"]) for h in seen] == [0, 0, 2, 1]
    assert seen[2]["like"][ITEM].tolist() == keys(log, "10")
    assert seen[2]["dislike"][ITEM].tolist() == keys(log, "11")
    assert seen[2]["dislike"]["rating"].tolist() == [2.5]
    genres = log.items["genres"][log.item_ids.index("10")]
    assert set(keys(log, "Crime", "Drama")) <= set(genres.tolist())


def test_the_threshold_decides_labels_and_events(tmp_path: Path) -> None:
    log = converted(tmp_path, config=RatingsConfig(like_from=3.0))
    assert np.nansum(log.labels) == 4
    info = json.loads((tmp_path / "log" / "dataset.json").read_text())
    assert info["counts"]["events"] == {"like": 4, "dislike": 1}
    assert info["notes"] == {"column 'title', which the schema does not declare": {"rows": 1, "first": ["movies.csv"]}}


def test_sampled_negatives_are_of_what_was_there_and_the_user_had_not_rated(tmp_path: Path) -> None:
    log = converted(tmp_path, config=RatingsConfig(negatives=9, seed=3))
    shown = {
        r: {log.item_ids[i]: label for i, label in zip(log.item_index[rows], log.labels[rows, 0].tolist(), strict=True)}
        for r, rows in ((r, log.shown(n)) for n, r in enumerate(log.request_ids))
    }
    assert shown == {
        "1/100000": {"10": 1, "11": 0},  # 12 and 13 come out later
        "2/150000": {"10": 0},  # nothing liked
        "1/200000": {"12": 1},
        "2/300000": {"13": 1, "11": 0, "12": 0},
    }
    assert shown.keys() == set(log.request_ids)


def random_ratings(users: int, per_user: int, items: int) -> str:
    """Ratings whose items come out one after the other."""
    rng, lines = np.random.default_rng(0), ["user,item,rating,time"]
    for number in range(per_user):
        for user in range(users):
            item = rng.integers(0, items * (number + 1) // per_user)
            lines.append(f"{user},{item},{5 if rng.random() < 0.5 else 2},{1000 * (number + 1) + user}")
    return "\n".join(lines) + "\n"


def test_sampled_negatives_know_nothing_of_the_future_and_their_place_tells_nothing(tmp_path: Path) -> None:
    text = random_ratings(users=60, per_user=15, items=90)
    log = converted(tmp_path, text, RatingsConfig(negatives=3, seed=1))
    rated: dict[str, dict[str, int]] = {}  # by user: item → when first
    began: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        user, item, _, time = line.split(",")
        began[item] = min(began.get(item, 1 << 60), 1000 * int(time))
        rated.setdefault(user, {}).setdefault(item, 1000 * int(time))
    drawn, later = 0, 0
    for number, request in enumerate(log.request_ids):
        user, time = request.split("/")[0], int(log.time_ms[number])
        items = [log.item_ids[i] for i in log.item_index[log.shown(number)]]
        assert len(set(items)) == len(items)
        assert all(began[str(item)] <= time for item in items)
        others = [item for item in items if rated[user].get(str(item), 1 << 60) > time]
        liked = int(log.labels[log.shown(number), 0].sum())
        assert len(items) - len(others) == 1
        assert len(others) <= 3 * liked
        drawn, later = drawn + len(others), later + sum(str(item) in rated[user] for item in others)
    assert drawn > 500
    assert later > 20  # what a user rates later is drawn like anything else
    full = np.diff(log.offsets) == 4
    places = log.labels[log.rows_of(np.flatnonzero(full)), 0].reshape(-1, 4).mean(axis=0)
    assert np.all(np.abs(places - 0.25) < 0.08)
    again = converted(tmp_path, text, RatingsConfig(negatives=3, seed=1))
    assert np.array_equal(again.item_index, log.item_index)
    other = converted(tmp_path, text, RatingsConfig(negatives=3, seed=2))
    assert not np.array_equal(other.item_index, log.item_index)


def test_rows_that_cannot_be_taken_name_line_and_column(tmp_path: Path) -> None:
    text = RATINGS + "3,10,good,100\n3,10,4\n,10,4,100\n3,11,4,1500000000000\n1,10,1.0,100\n4,10,4,100\n"
    converted(tmp_path, text)
    rejected = json.loads((tmp_path / "log" / "dataset.json").read_text())["rejected"]
    assert rejected == {
        "expected 4 columns, found 3": {"rows": 1, "first": ["line 8"]},
        "rating: expected a finite number, found other text": {"rows": 1, "first": ["line 7"]},
        "the same user, item and time as a rating before": {"rows": 1, "first": ["line 11"]},
        "timestamp: expected seconds since the epoch, found a far future; milliseconds (--time-unit ms)?": {
            "rows": 1,
            "first": ["line 10"],
        },
        "userId: expected an id, found an empty cell": {"rows": 1, "first": ["line 9"]},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"column 'user': expected in the header \(a, b\), found none; name the columns with --columns"),
        ("user,item,rating,time\n1,2,x,3\n", r"no usable rating; rejected: 1 × rating: expected a finite number.*line 2"),
        ("", r"column 'user': expected in the header \(empty\)"),
    ],
)
def test_files_that_cannot_be_taken_say_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(tmp_path, text)


def test_a_schema_for_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one task and events among like, dislike and rating, found tasks click"):
        converted(tmp_path, schema=load_schema(PRESETS / "ranklens.schema.yaml"))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("1::10::4::100\n1::11::2::200\n", ["--delimiter", "::", "--header", "user,item,rating,time"]),
        (
            "1\t10\t4\t100000\n1\t11\t2\t200000\n",
            ["--delimiter", "\\t", "--header", "user,item,rating,time", "--time-unit", "ms"],
        ),
        (
            "who,what,stars,at\n1,10,4,1970-01-01T00:01:40\n1,11,2,1970-01-01T01:03:20+01:00\n",
            ["--columns", "user=who,item=what,rating=stars,time=at", "--time-unit", "iso"],
        ),
    ],
)
def test_the_command_reads_what_rating_files_look_like(tmp_path: Path, text: str, flags: list[str]) -> None:
    with gzip.open(tmp_path / "ratings.gz", "wt") as file:
        file.write(text)
    source = ["--source", "ratings", "--input", str(tmp_path / "ratings.gz"), "--output", str(tmp_path / "log")]
    assert main(["prepare", *source, *flags]) == 0
    log = load_request_log(tmp_path / "log")
    assert log.time_ms.tolist() == [100_000, 200_000]
    assert log.labels[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "ratings"], "--input: expected a log file for --source ratings, found none"),
        (["--source", "ratings", "--input", "x", "--requests", "3"], "--requests: only for --source synthetic"),
        (["--like-from", "3"], "--like-from: only for --source ratings"),
        (["--source", "ratings", "--input", "x", "--columns", "isbn=a"], "--columns: expected user=NAME, item=NAME"),
    ],
)
def test_mistaken_flags_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert main(["prepare", "--output", str(tmp_path / "log"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cell", "unit", "time_ms"),
    [
        ("100.5", TimeUnit.SECONDS, 100_500),
        ("1700000000.333", TimeUnit.SECONDS, 1_700_000_000_333),
        ("2023-11-14T22:13:20.001", TimeUnit.ISO, 1_700_000_000_001),
        ("1700000000001", TimeUnit.MILLISECONDS, 1_700_000_000_001),
    ],
)
def test_times_are_kept_to_the_millisecond(tmp_path: Path, cell: str, unit: TimeUnit, time_ms: int) -> None:
    log = converted(tmp_path, f"user,item,rating,time\n1,10,4,{cell}\n", RatingsConfig(time_unit=unit))
    assert log.time_ms.tolist() == [time_ms]


@pytest.mark.parametrize(
    ("cell", "unit"), [("-5", TimeUnit.SECONDS), ("1969-12-31T23:59:59", TimeUnit.ISO), ("1e30", TimeUnit.MILLISECONDS)]
)
def test_times_that_no_log_can_hold_are_rejected(tmp_path: Path, cell: str, unit: TimeUnit) -> None:
    text = f"user,item,rating,time\n1,10,4,{cell}\n1,11,4,2000-01-01\n1,11,4,5\n"
    log = converted(tmp_path, text, RatingsConfig(time_unit=unit))
    assert len(log) == 1
    rejected = json.loads((tmp_path / "log" / "dataset.json").read_text())["rejected"]
    assert rejected["time: expected a time since the epoch, found one before it or too far after it"]["first"] == ["line 2"]


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ratings.gz").write_bytes(gzip.compress(RATINGS.encode())[:10] + b"\xff" * 40)
    with pytest.raises(ConfigError, match=r"ratings\.gz: cannot be read: "):
        convert_ratings(Delimited(tmp_path / "ratings.gz"), tmp_path / "log", SCHEMA, RatingsConfig())
