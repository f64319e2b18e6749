"""Features put over the API are what a Rank reads; what does not fit is refused by name, and nothing of it is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from protocol_server import ProtocolServer, protocol_server

from kunlun.client import Client, Event, KunlunError
from model.hashing import string_keys

ITEMS = ["item1", "item2"]


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


@pytest.fixture
def client(server: ProtocolServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=5) as opened:
        yield opened


def stored(server: ProtocolServer, user: str = "nobody") -> tuple[np.ndarray, list[bool], np.ndarray | None]:
    keys = string_keys(ITEMS, server.schema.hash)
    read = server.run(server.store.read_rank_inputs(user, keys, 1.0))
    return read.items, read.items_found.tolist(), read.user


def test_items_are_replaced_as_a_whole(server: ProtocolServer, client: Client) -> None:
    numeric, multi = item_features(server)
    assert client.put_items(ITEMS, {numeric: [1.5, 2.5], multi: [["a", "b"], []]}) == 2
    items, found, _ = stored(server)
    assert found == [True, True]
    assert items[numeric].tolist() == [1.5, 2.5]
    assert server.scorer.changed[-2:] == string_keys(ITEMS, server.schema.hash).tolist()
    assert client.put_items(ITEMS[:1], {multi: [["c"]]}) == 1
    items, _, _ = stored(server)
    assert np.isnan(items[numeric][0]), "what was not sent is missing now"
    assert items[numeric][1] == 2.5


def test_users_are_stored(server: ProtocolServer, client: Client) -> None:
    (feature,) = [f.name for f in server.schema.user if f.kind == "numeric"][:1] or [None]
    assert feature is not None
    assert client.put_users(["ann", "bob"], {feature: [30.0, 40.0]}) == 2
    assert stored(server, "bob")[2][feature].tolist() == [40.0]
    assert server.scorer.changed[-2:] == ["ann", "bob"]


def test_what_does_not_fit_is_named_and_not_stored(server: ProtocolServer, client: Client) -> None:
    numeric, _ = item_features(server)
    before = stored(server)[0].tobytes()
    for call, text in (
        (lambda: client.put_items(ITEMS, {"colour": [1.0, 2.0]}), "features: expected an item feature"),
        (lambda: client.put_items(ITEMS, {numeric: [1.0]}), f"features.{numeric}: expected 2 value(s), found 1"),
        (lambda: client.put_items(["item1", "item1"], {}), "distinct items"),
        (lambda: client.put_users([], {}), "user_ids: expected 1 to 2000 user(s), found 0"),
        (lambda: client.put_users(["ann", "ann"], {}), "user_ids: expected distinct users, found 1 repeated"),
        (lambda: client.put_users(["ann", ""], {}), "user_ids[1]: expected 1 to 256 characters, found 0"),
    ):
        with pytest.raises(KunlunError) as caught:
            call()
        assert caught.value.code == "INVALID_ARGUMENT"
        assert text in str(caught.value)
    assert stored(server)[0].tobytes() == before


def test_a_user_is_forgotten(server: ProtocolServer, client: Client) -> None:
    client.record_events([Event("zoe", "click", "item1")])
    assert client.forget_user("zoe")
    assert not client.forget_user("zoe")
    assert server.run(server.store.read_rank_inputs("zoe", np.empty(0, np.int64), 1.0)).history_version == 0
    with pytest.raises(KunlunError, match="user_id: expected 1 to 256 characters, found 0"):
        client.forget_user("")


def item_features(server: ProtocolServer) -> tuple[str, str]:
    """A numeric and a multi-valued item feature of the schema."""
    features = server.schema.item_features
    numeric = next(f.name for f in features if f.kind == "numeric")
    multi = next(f.name for f in features if f.kind == "multi")
    return numeric, multi
