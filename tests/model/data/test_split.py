"""Splits are disjoint, complete and keep the promise in their name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.config import ConfigError, parse_yaml
from model.data.canonical import LogFile, write_log
from model.data.request_log import RequestLog, load_request_log
from model.data.split import KINDS, split_requests
from model.schema import Schema
from model.training.config import SplitKind, TrainConfig, split_of

SCHEMA = parse_yaml(
    Schema,
    "{name: s, tables: {item: {width: 2}}, item: {table: item}, events: [{name: click, cap: 2}], tasks: [{name: click}], "
    "value: p_click}",
)


def log_of(path: Path, users: list[str], times: list[int]) -> RequestLog:
    count = len(users)
    requests = {
        "request_id": [f"r{i}" for i in range(count)],
        "time_ms": times,
        "user_id": users,
        "items": [["a"]] * count,
        "label_click": [[0]] * count,
    }
    events: dict[str, list[object]] = {n: [] for n in ("event_id", "user_id", "type", "item_id", "time_ms", "arrival_ms")}
    tables = {LogFile.REQUESTS: requests, LogFile.ITEMS: {"item_id": ["a"]}, LogFile.USERS: {"user_id": []}}
    return load_request_log(write_log(path, SCHEMA, tables | {LogFile.EVENTS: events}, {}))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> RequestLog:
    rng = np.random.default_rng(7)
    users = [f"u{i}" for i in rng.integers(0, 120, 400)]
    return log_of(tmp_path_factory.mktemp("split") / "log", users, rng.integers(0, 300, 400).tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_disjoint_complete_and_the_same_every_time(log: RequestLog, kind: str) -> None:
    split, again = split_requests(log, kind), split_requests(log, kind)
    parts = (split.train, split.validation, split.test)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(log)))
    for part, same in zip(parts, (again.train, again.validation, again.test), strict=True):
        assert part.tolist() == same.tolist() == sorted(part)


def test_per_user_last_holds_out_the_last_two_of_three_the_last_of_two_and_none_of_one(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", ["c", "b", "a", "c", "b", "c", "c"], [1, 2, 3, 4, 5, 6, 7])
    split = split_requests(log, "per_user_last")
    assert split.test.tolist() == [4, 6]
    assert split.validation.tolist() == [5]
    assert split.train.tolist() == [0, 1, 2, 3]


def test_time_split_never_trains_on_the_future(log: RequestLog) -> None:
    split = split_requests(log, "time", validation=0.2, test=0.2)
    assert log.time_ms[split.train].max() < log.time_ms[split.validation].min()
    assert log.time_ms[split.validation].max() < log.time_ms[split.test].min()
    assert len(split.test) == pytest.approx(80, abs=5)


def test_user_split_holds_out_whole_users(log: RequestLog) -> None:
    split = split_requests(log, "user", validation=0.2, test=0.2)
    owners = [set(log.user_index[part].tolist()) for part in (split.train, split.validation, split.test)]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    assert all(len(o) > 10 for o in owners)


def test_mistakes_are_named(log: RequestLog, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of per_user_last, time, user, found 'random'"):
        split_requests(log, "random")
    with pytest.raises(ConfigError, match=r"fractions with a sum below 1, found validation 0.5 and test 0.5"):
        split_requests(log, "time", validation=0.5, test=0.5)
    with pytest.raises(ConfigError, match=r"the test part is empty: the log has 1 request\(s\)"):
        split_requests(log_of(tmp_path / "log", ["a"], [1]), "per_user_last")


def test_a_training_configuration_says_how_much_is_held_out(log: RequestLog) -> None:
    config = TrainConfig(split=SplitKind.TIME, validation_share=0.05, test_share=0.4)
    own, usual = split_of(config, log), split_requests(log, "time", validation=0.05, test=0.4)
    assert [p.tolist() for p in (own.train, own.validation, own.test)] == [
        p.tolist() for p in (usual.train, usual.validation, usual.test)
    ]
    assert len(own.test) == pytest.approx(160, abs=5)
