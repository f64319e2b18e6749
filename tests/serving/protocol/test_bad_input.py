"""Bad input gets INVALID_ARGUMENT or NOT_FOUND naming field, expected and found; the server keeps serving."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from protocol_server import MAX_MESSAGE_BYTES, ProtocolServer, protocol_server, shop_schema

from kunlun.v1 import events_pb2, events_pb2_grpc, ranker_pb2, ranker_pb2_grpc, types_pb2

Column, Strings, Floats, Ints = (
    types_pb2.FeatureColumn,
    types_pb2.StringValues,
    types_pb2.FloatValues,
    types_pb2.Int64Values,
)
BIDS = Column(name="bid", float_values=Floats(values=[1, 2]))


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: ProtocolServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def request(**changes: Any) -> ranker_pb2.RankRequest:
    """A good request with `changes`; `columns` go beside the bids."""
    columns = changes.pop("columns", [])
    fields: dict[str, Any] = {
        "user_id": "u",
        "candidates": types_pb2.ItemIds(keys=["a", "b"]),
        "candidate_features": [BIDS, *columns],
    }
    return ranker_pb2.RankRequest(**(fields | changes))


def refusal(call: Any, message: Any) -> tuple[grpc.StatusCode, str, str]:
    """(code, field, description) of a refused call; the text and the details must agree."""
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=5)
    error = caught.value
    details = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert details.details[0].Unpack(bad)
    violation = bad.field_violations[0]
    assert error.details() == f"{violation.field}: {violation.description}"
    assert details.code == error.code().value[0]
    assert details.message == error.details()
    return error.code(), violation.field, violation.description


NOW_MS = int(time.time() * 1000)
BAD_RANKS: list[tuple[str, ranker_pb2.RankRequest, str, str]] = [
    ("empty user", request(user_id=""), "user_id", "expected 1 to 256 characters, found 0"),
    ("long user", request(user_id="x" * 257), "user_id", "expected 1 to 256 characters, found 257"),
    ("long request id", request(request_id="x" * 65), "request_id", "expected at most 64 characters, found 65"),
    ("no candidates", request(candidates=types_pb2.ItemIds()), "candidates.keys", "expected 1 to 50 item(s), found 0"),
    (
        "numeric ids for string items",
        request(candidates=types_pb2.ItemIds(ids=[1])),
        "candidates.ids",
        "expected none: the schema identifies items by keys, found 1",
    ),
    (
        "both ids and keys",
        request(candidates=types_pb2.ItemIds(ids=[1], keys=["a"])),
        "candidates.ids",
        "expected none: the schema identifies items by keys, found 1",
    ),
    (
        "duplicate candidate",
        request(candidates=types_pb2.ItemIds(keys=["a", "b", "c", "b", "a"])),
        "candidates.keys[3]",
        "expected distinct items, found 'b', which is also at 1",
    ),
    (
        "empty candidate",
        request(candidates=types_pb2.ItemIds(keys=["a", ""])),
        "candidates.keys[1]",
        "expected 1 to 512 characters, found 0",
    ),
    (
        "too many candidates",
        request(candidates=types_pb2.ItemIds(keys=[str(i) for i in range(51)])),
        "candidates.keys",
        "expected 1 to 50 item(s), found 51",
    ),
    (
        "unknown context feature",
        request(context_features=[Column(name="surfac", string_values=Strings(values=["home"]))]),
        "context_features",
        "expected a context feature (did you mean 'surface'?), found 'surfac'",
    ),
    (
        "unknown column",
        request(columns=[Column(name="margins", float_values=Floats(values=[1, 2]))]),
        "candidate_features",
        "expected an item feature or request column (did you mean 'margin'?), found 'margins'",
    ),
    (
        "derived feature",
        request(context_features=[Column(name="hour", float_values=Floats(values=[1]))]),
        "context_features.hour",
        "expected no value: the server computes it, found a column",
    ),
    ("missing column", request(candidate_features=[]), "candidate_features.bid", "found none"),
    ("column twice", request(columns=[BIDS]), "candidate_features.bid", "expected one column, found two"),
    (
        "text for a number",
        request(context_features=[Column(name="page", string_values=Strings(values=["1"]))]),
        "context_features.page",
        "expected float_values, found string_values",
    ),
    (
        "number for text",
        request(user_features=[Column(name="country", int64_values=Ints(values=[1]))]),
        "user_features.country",
        "expected string_values, found int64_values",
    ),
    (
        "number for an id",
        request(columns=[Column(name="brand", float_values=Floats(values=[1, 2]))]),
        "candidate_features.brand",
        "expected int64_values, found float_values",
    ),
    ("no value", request(context_features=[Column(name="page")]), "context_features.page", "found no values"),
    (
        "NaN feature",
        request(context_features=[Column(name="page", float_values=Floats(values=[math.nan]))]),
        "context_features.page",
        "expected finite numbers, found nan",
    ),
    (
        "infinite bid",
        request(candidate_features=[Column(name="bid", float_values=Floats(values=[1, math.inf]))]),
        "candidate_features.bid[1]",
        "expected finite numbers, found inf",
    ),
    (
        "too few bids",
        request(candidate_features=[Column(name="bid", float_values=Floats(values=[1]))]),
        "candidate_features.bid",
        "expected 2 value(s), one per candidate, found 1",
    ),
    (
        "too many prices",
        request(columns=[Column(name="price", float_values=Floats(values=[1, 2, 3]))]),
        "candidate_features.price",
        "expected 2 value(s), found 3",
    ),
    (
        "no offsets",
        request(columns=[Column(name="genres", string_values=Strings(values=["x"]))]),
        "candidate_features.genres.offsets",
        "expected 3 offsets (rows + 1), found 0",
    ),
    (
        "falling offsets",
        request(columns=[Column(name="genres", string_values=Strings(values=["x", "y"]), offsets=[0, 3, 2])]),
        "candidate_features.genres.offsets",
        "expected non-decreasing offsets, found a decrease",
    ),
    (
        "offsets past the values",
        request(columns=[Column(name="genres", string_values=Strings(values=["x"]), offsets=[0, 1, 9])]),
        "candidate_features.genres.offsets",
        "expected 3 offsets from 0 to 1, found 3 offsets",
    ),
    (
        "too many values",
        request(columns=[Column(name="genres", string_values=Strings(values=list("wxyz")), offsets=[0, 4, 4])]),
        "candidate_features.genres",
        "expected at most 3 values per row, found 4",
    ),
    (
        "offsets of a single value",
        request(context_features=[Column(name="page", float_values=Floats(values=[1]), offsets=[0, 1])]),
        "context_features.page.offsets",
        "expected none: the feature has one value per row, found 2",
    ),
    ("bad token", request(min_event_token="latest"), "min_event_token", "a RecordEvents reply, unchanged, found 'latest'"),
    ("negative time", request(time_ms=-1), "time_ms", "expected milliseconds since the epoch, or 0 for now, found -1"),
    ("time in nanoseconds", request(time_ms=NOW_MS * 1_000_000), "time_ms", "at most 60 minutes in the future"),
]


@pytest.mark.parametrize(("message", "field", "description"), [pytest.param(*c[1:], id=c[0]) for c in BAD_RANKS])
def test_bad_rank_names_field_expected_found(
    channel: grpc.Channel, message: ranker_pb2.RankRequest, field: str, description: str
) -> None:
    code, found_field, found = refusal(ranker_pb2_grpc.RankerStub(channel).Rank, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert found_field == field
    assert description in found


@pytest.mark.parametrize(
    ("message", "field", "description"),
    [
        (request(model="shops"), "model", "expected 'shop' (or empty), found 'shops'"),
        (request(version="8"), "version", "expected '7' (or empty) of model 'shop', found '8'"),
    ],
)
def test_unknown_model_is_not_found(
    channel: grpc.Channel, message: ranker_pb2.RankRequest, field: str, description: str
) -> None:
    assert refusal(ranker_pb2_grpc.RankerStub(channel).Rank, message) == (grpc.StatusCode.NOT_FOUND, field, description)


def event(**changes: Any) -> events_pb2.Event:
    """A good event with `changes`."""
    fields: dict[str, Any] = {"event_id": "e", "user_id": "u", "type": "click", "item": types_pb2.ItemIds(keys=["a"])}
    return events_pb2.Event(**(fields | changes))


@pytest.mark.parametrize(
    ("bad", "field", "description"),
    [
        (event(event_id=""), "events[1].event_id", "expected 1 to 128 characters, found 0"),
        (event(user_id=""), "events[1].user_id", "expected 1 to 256 characters, found 0"),
        (event(type="clik"), "events[1].type", "expected a declared event type (did you mean 'click'?), found 'clik'"),
        (event(item=types_pb2.ItemIds()), "events[1].item.keys", "expected exactly one item, found 0"),
        (event(item=types_pb2.ItemIds(keys=["a", "b"])), "events[1].item.keys", "expected exactly one item, found 2"),
        (event(time_ms=-5), "events[1].time_ms", "found -5"),
        (event(time_ms=NOW_MS + 7_200_000), "events[1].time_ms", "at most 60 minutes in the future"),
        (
            event(attributes=[Column(name="dwel", float_values=Floats(values=[1]))]),
            "events[1].attributes",
            "expected an attribute of event type 'click' (did you mean 'dwell'?), found 'dwel'",
        ),
        (
            event(attributes=[Column(name="dwell", float_values=Floats(values=[1, 2]))]),
            "events[1].attributes.dwell",
            "expected 1 value(s), found 2",
        ),
    ],
)
def test_bad_event_names_its_position(channel: grpc.Channel, bad: events_pb2.Event, field: str, description: str) -> None:
    message = events_pb2.RecordEventsRequest(events=[event(), bad])
    code, found_field, found = refusal(events_pb2_grpc.EventsStub(channel).RecordEvents, message)
    assert (code, found_field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert description in found


def test_a_call_takes_at_most_a_thousand_events(channel: grpc.Channel) -> None:
    call = events_pb2_grpc.EventsStub(channel).RecordEvents
    many = events_pb2.RecordEventsRequest(events=[event()] * 1001)
    assert refusal(call, many)[1:] == ("events", "expected 1 to 1000 events per call, found 1001")
    assert refusal(call, events_pb2.RecordEventsRequest())[1:] == ("events", "expected 1 to 1000 events per call, found 0")


def test_oversized_message_is_refused_before_it_is_parsed(channel: grpc.Channel) -> None:
    large = request(request_id="x" * MAX_MESSAGE_BYTES)
    code, field, description = refusal(ranker_pb2_grpc.RankerStub(channel).Rank, large)
    assert (code, field) == (grpc.StatusCode.INVALID_ARGUMENT, "message")
    assert description == f"expected at most {MAX_MESSAGE_BYTES} bytes, found {large.ByteSize()} bytes"


def test_message_beyond_the_transport_limit_is_refused_by_grpc(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ranker_pb2_grpc.RankerStub(channel).Rank(request(request_id="x" * 17 * MAX_MESSAGE_BYTES), timeout=5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    code, field, description = refusal(channel.unary_unary("/kunlun.v1.Ranker/Rank"), b"\xff\xff\xff")
    assert (code, field) == (grpc.StatusCode.INVALID_ARGUMENT, "message")
    assert description == "expected a message of the kunlun.v1 API, found bytes that do not parse"


def test_the_server_keeps_serving_after_bad_input(server: ProtocolServer, channel: grpc.Channel) -> None:
    before = len(server.scorer.requests)
    for _, message, _, _ in BAD_RANKS:
        refusal(ranker_pb2_grpc.RankerStub(channel).Rank, message)
    assert len(server.scorer.requests) == before, "a bad request reached the core"
    reply = ranker_pb2_grpc.RankerStub(channel).Rank(request(), timeout=5)
    assert sorted(reply.items.keys) == ["a", "b"]
    assert server.sample("kunlun_calls_total", method="Rank", code="INVALID_ARGUMENT") >= len(BAD_RANKS)


def test_numeric_items_refuse_strings_and_the_reserved_id() -> None:
    schema = shop_schema(item={"id_type": "int64", "table": "item"}, value="p_click")
    with protocol_server(schema) as running, grpc.insecure_channel(running.address) as channel:
        call = ranker_pb2_grpc.RankerStub(channel).Rank
        for items, field, description in (
            (types_pb2.ItemIds(keys=["a"]), "candidates.keys", "expected none: the schema identifies items by ids, found 1"),
            (types_pb2.ItemIds(ids=[4, 5, 4]), "candidates.ids[2]", "expected distinct items, found 4, which is also at 0"),
            (types_pb2.ItemIds(ids=[-(2**63)]), "candidates.ids", f"expected ids above -2^63, found {-(2**63)}"),
        ):
            message = ranker_pb2.RankRequest(user_id="u", candidates=items)
            assert refusal(call, message) == (grpc.StatusCode.INVALID_ARGUMENT, field, description)
        reply = call(ranker_pb2.RankRequest(user_id="u", candidates=types_pb2.ItemIds(ids=[-7, 2**62])), timeout=5)
        assert sorted(reply.items.ids) == [-7, 2**62]
