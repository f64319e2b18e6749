"""Conversion of columns and event batches: exact numbers, empty rows, and an event loop that stays free."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from protocol_server import shop_schema

from kunlun.v1 import events_pb2, types_pb2
from kunlun.values import Event, column
from model.hashing import MISSING_KEY, string_keys
from model.schema import FeatureKind
from serving.core.errors import InvalidField
from serving.protocol.columns import ColumnReader
from serving.protocol.event_messages import EventMessages

SCHEMA = shop_schema()
READER = ColumnReader(SCHEMA, SCHEMA.item_features, "an item feature or request column", SCHEMA.request_columns)


def test_integer_request_columns_keep_every_digit() -> None:
    bids = [123_456_789, 16_777_217, -(2**53) + 1]
    _, plain = READER.overrides("candidate_features", [column("bid", bids)], 3)
    assert plain["bid"].dtype == np.float64
    assert plain["bid"].tolist() == bids


@pytest.mark.parametrize("sent", ["int64_values", "string_values", "float_values"])
def test_rows_without_values_may_be_of_any_kind(sent: str) -> None:
    empty = types_pb2.FeatureColumn(name="genres", offsets=[0, 0, 0])
    getattr(empty, sent).SetInParent()
    overrides, _ = READER.overrides("candidate_features", [empty], 2)
    assert overrides is not None
    assert overrides.fields == ("genres",)
    assert (overrides.records["genres"] == MISSING_KEY).all()


def test_values_of_the_wrong_kind_are_refused_still() -> None:
    with pytest.raises(InvalidField, match="expected string_values, found int64_values"):
        READER.overrides("candidate_features", [column("genres", [[1], []])], 2)
    with pytest.raises(InvalidField, match=r"2 value\(s\), one per candidate, found 0"):
        READER.overrides("candidate_features", [types_pb2.FeatureColumn(name="bid", string_values={})], 2)


def test_events_carry_several_values_of_an_attribute() -> None:
    click = SCHEMA.event("click")
    genres = next(f for f in SCHEMA.item_features if f.kind is FeatureKind.MULTI)
    schema = SCHEMA.model_copy(update={"events": (click.model_copy(update={"attributes": (*click.attributes, genres)}),)})
    sent = [Event("u", "click", "a", {genres.name: ["x", "y"]}), Event("u", "click", "b", {genres.name: []})]
    message = events_pb2.RecordEventsRequest(events=[event.message() for event in sent])
    first, second = (e.record[genres.name][0] for e in asyncio.run(EventMessages(schema).events(message)))
    assert first[:2].tolist() == string_keys(["x", "y"], schema.hash).tolist()
    assert (first[2:] == MISSING_KEY).all()
    assert (second == MISSING_KEY).all()


def test_a_full_batch_of_events_leaves_the_loop_to_others() -> None:
    """Other work on the loop runs many times while 1000 events are converted."""
    message = events_pb2.RecordEventsRequest(
        events=[
            events_pb2.Event(
                event_id=str(i),
                user_id="u",
                type="click",
                item=types_pb2.ItemIds(keys=[f"i{i}"]),
                attributes=[column("dwell", [1.5])],
            )
            for i in range(1000)
        ]
    )
    turns: list[float] = []

    async def others() -> None:
        while True:
            turns.append(time.perf_counter())
            await asyncio.sleep(0)

    async def scenario() -> None:
        beside = asyncio.create_task(others())
        await asyncio.sleep(0)
        turns.clear()
        events = await EventMessages(SCHEMA).events(message)
        beside.cancel()
        assert [e.event_id for e in events] == [str(i) for i in range(1000)]

    asyncio.run(scenario())
    print(f"longest turn {1e3 * max(np.diff(turns)):.1f} ms")
    assert len(turns) >= 40
