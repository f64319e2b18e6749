"""A digest knows every part of a log and nothing of how it was read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.data import log_digest as module
from model.data.log_digest import log_digest
from model.data.request_log import ArrivalLog, RequestLog, load_request_log
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> RequestLog:
    generate(SyntheticConfig(requests=60, users=20), Path(tmp_path_factory.mktemp("digest")) / "log", lambda _: None)
    return load_request_log(tmp_path_factory.getbasetemp() / "digest0" / "log")


def flipped(array: NDArray[Any]) -> NDArray[Any]:
    """The array with one bit of its last byte changed."""
    changed = np.ascontiguousarray(array).copy()
    changed.view(np.uint8).reshape(-1)[-1] ^= 1
    return changed


def test_every_array_counts(log: RequestLog) -> None:
    event = log.schema.events[0].name
    own = log.events[event]
    others = {
        "labels": replace(log, labels=flipped(log.labels)),
        "positions": replace(log, positions=flipped(log.positions)),
        "items shown": replace(log, item_index=log.item_index[::-1]),
        "lists cut elsewhere": replace(log, offsets=np.concatenate([log.offsets[:1], log.offsets[1:-1] - 1, log.offsets[-1:]])),
        "users": replace(log, user_index=log.user_index[::-1]),
        "times": replace(log, time_ms=log.time_ms + 1),
        "items": replace(log, items=flipped(log.items)),
        "events": replace(log, events=log.events | {event: ArrivalLog(own.offsets, flipped(own.records))}),
        "fewer events": replace(log, events=log.events | {event: replace(own, offsets=np.minimum(own.offsets, 5))}),
        "truth": replace(log, truth=None),
        "negative rate": replace(log, negative_rate=0.5),
    }
    digests = {name: log_digest(other) for name, other in others.items()} | {"itself": log_digest(log)}
    assert len(set(digests.values())) == len(digests), digests
    assert log_digest(replace(log, labels=log.labels.copy())) == digests["itself"]


def test_numbers_of_users_and_items_do_not_count(log: RequestLog) -> None:
    items, users = np.random.default_rng(0).permutation(len(log.items)), np.random.default_rng(1).permutation(len(log.user_ids))
    events = {}
    for name, own in log.events.items():
        parts = [own.of_user(user) for user in users.tolist()]
        events[name] = ArrivalLog(np.concatenate([[0], np.cumsum([len(p) for p in parts])]), np.concatenate(parts))
    renumbered = replace(
        log,
        item_keys=log.item_keys[items],
        items=log.items[items],
        item_index=np.argsort(items)[log.item_index],
        user_keys=log.user_keys[users],
        users=log.users[users],
        user_index=np.argsort(users)[log.user_index],
        events=events,
    )
    assert log_digest(renumbered) == log_digest(log)


def test_blocks_do_not_count(log: RequestLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of events, whose blocks end with a user; a digest is compared only with one by the same code."""
    rows = np.concatenate([b.reshape(-1) for b in list(module._events(log.events["click"], log.user_keys))[2::3]])
    monkeypatch.setattr(module, "BLOCK_SHOWN", 3)
    parts = list(module._events(log.events["click"], log.user_keys))
    assert len(parts) > 10
    assert np.concatenate([b.reshape(-1) for b in parts[2::3]]).tobytes() == rows.tobytes()
