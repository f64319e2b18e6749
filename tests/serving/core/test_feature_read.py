"""What a Rank reads of its items: rows that were cached are those that encoding from scratch gives, bit for bit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rank_fixtures import SilentObserver

from model.artifact import Artifact
from model.features import gather
from model.records import ITEM, TIME_MS, Records, event_dtype, feature_dtype, missing_records
from serving.core.errors import StoreUnavailable
from serving.core.feature_read import FeatureReader
from serving.core.host_features import IS_KNOWN, RECORD, HostFeatures, ItemRows, stack_requests
from serving.core.options import CoreOptions
from serving.store.base import RankInputs

TTL_S = 10.0
OPTIONS = CoreOptions(item_cache_mb=1e-6, item_ttl_s=TTL_S, store_failures=1_000_000)  # room for the fewest items: 16

Keys = st.lists(st.integers(995, 1030), min_size=1, max_size=24, unique=True)  # the model knows those up to 1000
Step = st.tuples(
    st.sampled_from(["put", "read", "read while the store is down"]), Keys, st.sampled_from([0.0, TTL_S / 3, TTL_S])
)


class ItemStore:
    """Items in a dict; remembers which record the last answer said of an item, to a Rank and behind one's back."""

    def __init__(self, host: HostFeatures) -> None:
        self._schema, self._dtype = host.schema, feature_dtype(host.schema.item_features)
        self._stored: dict[int, Records] = {}
        self.said: dict[int, Records] = {}
        self.said_behind: dict[int, Records] = {}
        self.is_down = False

    def put(self, keys: Sequence[int], number: int) -> None:
        """Records that differ from all before; some have no popularity."""
        for key in keys:
            record = missing_records(self._dtype, 1)
            record["genres"][0, : 1 + number % 4] = 1 + (number + key + np.arange(1 + number % 4)) % 25
            if (number + key) % 5:
                record["popularity"] = number + key / 7
            self._stored[key] = record

    def _answer(self, keys: Sequence[int]) -> dict[int, Records]:
        if self.is_down:
            raise StoreUnavailable("store: down")
        missing = missing_records(self._dtype, 1)
        return {key: self._stored.get(key, missing) for key in keys}

    def _items(self, answer: dict[int, Records]) -> tuple[Records, NDArray[np.bool_]]:
        items = np.concatenate([missing_records(self._dtype, 0), *answer.values()])
        return items, np.array([key in self._stored for key in answer], bool)

    async def read_rank_inputs(
        self, user_id: str, item_keys: NDArray[np.int64], timeout_s: float, *, with_user: bool = True
    ) -> RankInputs:
        answer = self._answer(item_keys.tolist())
        self.said |= answer
        histories = {e.name: missing_records(event_dtype(e), 0) for e in self._schema.events}
        return RankInputs(None, histories, 0, *self._items(answer))

    async def read_items(self, item_keys: NDArray[np.int64], timeout_s: float) -> tuple[Records, NDArray[np.bool_]]:
        """In the background: what it says counts from the next read on."""
        answer = self._answer(item_keys.tolist())
        self.said_behind |= answer
        return self._items(answer)


@pytest.fixture(scope="module")
def host(artifact: Artifact) -> HostFeatures:
    return HostFeatures(artifact)


@settings(max_examples=60, deadline=None)
@given(st.lists(Step, max_size=40))
def test_cached_rows_are_those_of_encoding_from_scratch(host: HostFeatures, steps: list[tuple[str, list[int], float]]) -> None:
    now, store = [0.0], ItemStore(host)
    reader = FeatureReader(host, store, OPTIONS, SilentObserver())  # type: ignore[arg-type]
    reader._near._clock = lambda: now[0]
    for number, (what, keys, pause_s) in enumerate(steps):
        now[0] += pause_s
        if what == "put":
            store.put(keys, number)
            continue
        store.is_down = what != "read"
        known = reader._near.last_known(np.array(keys))[1]
        _, items = asyncio.run(reader.read("ann", np.array(keys), 0, 1e12))
        missing = missing_records(feature_dtype(host.schema.item_features), 1)
        is_said = known | (not store.is_down)
        records = np.concatenate([store.said[key] if said else missing for key, said in zip(keys, is_said, strict=True)])
        store.said |= store.said_behind
        store.said_behind.clear()
        assert items[RECORD].tobytes() == records.tobytes()
        check_from_scratch(host, np.array(keys), records, items)


def check_from_scratch(host: HostFeatures, keys: NDArray[np.int64], records: Records, items: ItemRows) -> None:
    """One item at a time, by the encoder and the tables themselves."""
    for at in range(len(keys)):
        encoded = host.encoder.encode_items(keys[at : at + 1], records[at : at + 1])
        assert np.array_equal(items["item_rows"][at], gather(host.layout.item, encoded.rows, host.tables)[0])
        assert np.array_equal(items["item_dense"][at], encoded.dense[0])
        assert items[IS_KNOWN][at] == (keys[at] <= 1000)


def test_affinities_are_those_of_the_encoder_and_of_the_histories_given(host: HostFeatures) -> None:
    keys, context = np.arange(1, 9), missing_records(feature_dtype(host.schema.context), 1)
    records = missing_records(feature_dtype(host.schema.item_features), 8)
    records["genres"][:, 0] = np.arange(8) % 3 + 1
    histories = {e.name: missing_records(event_dtype(e), 4) for e in host.schema.events}
    for history in histories.values():
        history[ITEM], history[TIME_MS] = [2, 3, 90, 91], [10, 10, 20, 20]
    histories["click"] = histories["click"][1:2]
    histories["impression"]["genres"][:, 0] = 2
    items = host.encode_items(keys, records)
    record = host.affinity_record(histories)
    inputs = host.score_inputs(items, context, 30, 20, record)
    expected = host.encoder.encode_affinities(host.encoder.encode_items(keys, records).rows, record)
    dense = host.layout.item.dense
    assert dense[-4:] == ("liking_item_taste", "liking_item_familiarity", "liking_genres_taste", "liking_genres_familiarity")
    assert np.array_equal(inputs.items["item_dense"][:, -4:], expected.items)
    assert np.array_equal(inputs.context["context_dense"][0, -2:], expected.context)
    taste = expected.items[:, 0]
    assert taste[2] > 0 > taste[1]  # of the two films shown before, the one clicked and the other
    assert (taste[3:] == 0).all()
    assert ((expected.items[:, 3] > 0) == (records["genres"][:, 0] == 2)).all()


def test_engines_are_given_dense_tensors(host: HostFeatures) -> None:
    keys, context = np.arange(8), missing_records(feature_dtype(host.schema.context), 1)
    items = host.encode_items(keys, missing_records(feature_dtype(host.schema.item_features), 8))
    nothing = {e.name: missing_records(event_dtype(e), 0) for e in host.schema.events}
    inputs = host.score_inputs(items, context, 0, None, host.affinity_record(nothing))
    assert inputs.unknown_items == 1, "item 0"
    for candidates in (8, 16):
        batch = stack_requests([{}], [inputs.context], [inputs.items], 1, candidates)
        assert all(tensor.flags.c_contiguous for tensor in batch.values())
