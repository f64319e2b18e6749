"""What good calls carry: order, scores, receipts, tokens, deadlines, timings, and what is counted."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from protocol_server import ProtocolServer, protocol_server

from kunlun.v1 import events_pb2, events_pb2_grpc, feedback_pb2, feedback_pb2_grpc, ranker_pb2, ranker_pb2_grpc, types_pb2
from model.hashing import string_key, string_keys
from serving.core.errors import DeadlineExpired, Overloaded, StoreUnavailable
from serving.core.types import Priority
from serving.feedback.outcome import decode_outcome
from serving.protocol.errors import CODES, code_of
from serving.protocol.tokens import event_token, version_asked

ITEMS = [f"item{i}" for i in range(10)]


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: ProtocolServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def column(name: str, *values: float | str | int) -> types_pb2.FeatureColumn:
    if isinstance(values[0], str):
        return types_pb2.FeatureColumn(name=name, string_values=types_pb2.StringValues(values=values))
    return types_pb2.FeatureColumn(name=name, float_values=types_pb2.FloatValues(values=values))


def rank_request(user: str = "anna", **changes: object) -> ranker_pb2.RankRequest:
    fields: dict[str, object] = {
        "user_id": user,
        "candidates": types_pb2.ItemIds(keys=ITEMS),
        "candidate_features": [column("bid", *range(1, 11))],
        "context_features": [column("surface", "home")],
    }
    return ranker_pb2.RankRequest(**(fields | changes))


def test_reply_is_ordered_and_parallel(server: ProtocolServer, channel: grpc.Channel) -> None:
    reply = ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(top_k=4, request_id="r1"), timeout=5)
    spec = server.schema.hash
    p = server.scorer.probabilities(string_key("anna", spec), string_keys(ITEMS, spec)).astype(np.float64)
    values = np.arange(1, 11) * p[:, 0] + p[:, 1]
    best = np.argsort(-values, kind="stable")[:4]
    assert list(reply.order) == best.tolist()
    assert list(reply.items.keys) == [ITEMS[i] for i in best]
    assert {s.task: len(s.scores) for s in reply.scores} == {"click": 4, "like": 4}
    np.testing.assert_array_equal(np.float32(reply.scores[1].scores), p[best, 1].astype(np.float32))
    np.testing.assert_allclose(reply.values, values[best], rtol=0, atol=0)
    assert (reply.request_id, reply.model, reply.version, reply.rung) == ("r1", "shop", "7", types_pb2.RUNG_FULL)
    assert not reply.HasField("timings")


def test_top_k_beyond_the_candidates_returns_all(channel: grpc.Channel) -> None:
    assert len(ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(top_k=1000), timeout=5).order) == 10


def test_request_ids_are_generated_and_distinct(channel: grpc.Channel) -> None:
    ids = {ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(), timeout=5).request_id for _ in range(3)}
    assert len(ids) == 3
    assert all(len(i) == 32 for i in ids)


def test_timings_are_reported_on_request(channel: grpc.Channel) -> None:
    timings = ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(include_timings=True), timeout=5).timings
    assert (timings.store_us, timings.queue_us, timings.encode_us, timings.score_us) == (1000, 2000, 3000, 4000)
    assert 0 < timings.convert_us <= timings.total_us


def test_features_reach_the_core_as_records(server: ProtocolServer, channel: grpc.Channel) -> None:
    genres = types_pb2.FeatureColumn(
        name="genres", string_values=types_pb2.StringValues(values=["x", "y", "x"]), offsets=[0, 2, 3, *[3] * 8]
    )
    brand = types_pb2.FeatureColumn(name="brand", int64_values=types_pb2.Int64Values(values=range(10)))
    message = rank_request(
        candidate_features=[column("bid", *range(10)), genres, brand],
        user_features=[column("age", 33.0)],
        context_features=[
            column("surface", "home"),
            types_pb2.FeatureColumn(name="page", int64_values=types_pb2.Int64Values(values=[3])),
        ],
        time_ms=1_700_000_000_000,
    )
    ranker_pb2_grpc.RankerStub(channel).Rank(message, timeout=5)
    core, spec = server.scorer.requests[-1], server.schema.hash
    overrides, user = core.candidates.overrides, core.user_overrides
    assert overrides is not None
    assert user is not None
    assert overrides.fields == ("genres", "brand")
    assert overrides.records["genres"][0].tolist()[:2] == string_keys(["x", "y"], spec).tolist()
    assert overrides.records["brand"].tolist() == list(range(10))
    assert np.isnan(overrides.records["price"]).all()
    assert core.candidates.columns["bid"].tolist() == list(range(10))
    assert (user.fields, user.records["age"].tolist()) == (("age",), [33.0])
    assert core.context["surface"].tolist() == [string_key("home", spec)]
    assert core.context["page"].tolist() == [3.0]
    assert core.received_ms == 1_700_000_000_000


def test_the_calls_deadline_is_the_budget(server: ProtocolServer, channel: grpc.Channel) -> None:
    ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(), timeout=0.5)
    core = server.scorer.requests[-1]
    assert 0.3 < core.deadline - core.started <= 0.51  # the wire rounds time-outs up
    ranker_pb2_grpc.RankerStub(channel).Rank(rank_request())
    core = server.scorer.requests[-1]
    assert core.deadline - core.started == pytest.approx(1.0), "the configured default"


def test_receipt_says_what_was_served(server: ProtocolServer, channel: grpc.Channel) -> None:
    reply = ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(top_k=3, request_id="r2"), timeout=5)
    served = server.signer.open(reply.receipt, now_ms=0)
    assert (served.request_id, served.model_version, served.slice_value, served.rung) == ("r2", "7", "home", 1)
    assert served.item_keys.tolist() == string_keys(reply.items.keys, server.schema.hash).tolist()
    assert served.predictions[:, 0].tolist() == list(reply.scores[0].scores)
    without = ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(context_features=[]), timeout=5)
    assert server.signer.open(without.receipt, now_ms=0).slice_value == ""


def test_an_event_token_asks_for_its_users_version(server: ProtocolServer, channel: grpc.Channel) -> None:
    item = types_pb2.ItemIds(keys=["item1"])
    events = [
        events_pb2.Event(event_id=f"{user}{n}", user_id=user, type="click", item=item, attributes=[column("dwell", 2.5)])
        for user, count in (("bea", 1), ("carl", 3))
        for n in range(count)
    ]
    call = events_pb2_grpc.EventsStub(channel).RecordEvents
    recorded = call(events_pb2.RecordEventsRequest(events=events), timeout=5)
    again = call(events_pb2.RecordEventsRequest(events=events), timeout=5)
    assert (recorded.stored, recorded.duplicates, again.stored, again.duplicates) == (4, 0, 0, 4)
    for user, version in (("bea", 1), ("carl", 3), ("dora", 0)):
        reply = ranker_pb2_grpc.RankerStub(channel).Rank(
            rank_request(user=user, min_event_token=recorded.event_token), timeout=5
        )
        assert server.scorer.requests[-1].min_event_version == version
        assert reply.history_length == version
    assert server.sample("kunlun_events_total", outcome="duplicate") == 4


def test_tokens_round_trip_over_many_users(server: ProtocolServer) -> None:
    spec = server.schema.hash
    versions = {f"user{i}": 1 + i**3 for i in range(1000)}
    token = event_token(versions, spec)
    assert all(version_asked(token, string_key(user, spec)) == version for user, version in versions.items())
    assert len(token) < 65_536


def test_outcomes_reach_the_stream_once_verified(server: ProtocolServer, channel: grpc.Channel) -> None:
    reply = ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(top_k=5), timeout=5)
    call = feedback_pb2_grpc.FeedbackStub(channel).ReportOutcomes
    labels = [feedback_pb2.Label(position=2, task="like")] * 2
    outcome = feedback_pb2.Outcome(receipt=reply.receipt, shown=[0, 2], labels=labels)
    assert call(feedback_pb2.ReportOutcomesRequest(outcomes=[outcome]), timeout=5).stored == 1
    _, data = server.run(server.store.read_outcomes("0", 10, 100))[-1]
    decoded = decode_outcome(data)
    assert (decoded.shown, decoded.labels) == ((0, 2), ((2, 1),))
    assert decoded.served.predictions[:, 0].tolist() == list(reply.scores[0].scores)


def test_bad_outcomes_name_their_position(server: ProtocolServer, channel: grpc.Channel) -> None:
    reply = ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(top_k=2), timeout=5)
    call = feedback_pb2_grpc.FeedbackStub(channel).ReportOutcomes
    flipped = bytes([*reply.receipt[:-1], reply.receipt[-1] ^ 1])
    good = feedback_pb2.Outcome(receipt=reply.receipt, shown=[0])
    like, lik = feedback_pb2.Label(position=2, task="like"), feedback_pb2.Label(position=0, task="lik")
    for bad, message in (
        (feedback_pb2.Outcome(receipt=flipped, shown=[0]), "outcomes[1].receipt: expected an unchanged receipt"),
        (feedback_pb2.Outcome(receipt=b"x", shown=[0]), "outcomes[1].receipt: expected at least"),
        (feedback_pb2.Outcome(receipt=reply.receipt), "outcomes[1]: expected shown positions, labels, or both, found neither"),
        (feedback_pb2.Outcome(receipt=reply.receipt, shown=[2]), "outcomes[1].shown: expected positions below 2"),
        (feedback_pb2.Outcome(receipt=reply.receipt, shown=[1, 1]), "outcomes[1].shown: expected distinct positions"),
        (feedback_pb2.Outcome(receipt=reply.receipt, labels=[like]), "outcomes[1].labels[0].position: expected a position"),
        (
            feedback_pb2.Outcome(receipt=reply.receipt, labels=[lik]),
            "outcomes[1].labels[0].task: expected a task (",
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(feedback_pb2.ReportOutcomesRequest(outcomes=[good, bad]), timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(message)
    assert server.sample("kunlun_receipts_rejected_total", reason="forged") == 1
    assert server.sample("kunlun_receipts_rejected_total", reason="truncated") == 1


def test_overload_travels_with_retry_advice(server: ProtocolServer, channel: grpc.Channel) -> None:
    server.scorer.fail = [Overloaded("the queue is full", 0.125)]
    with pytest.raises(grpc.RpcError) as caught:
        ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == 125_000_000


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DeadlineExpired("too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (StoreUnavailable("away"), grpc.StatusCode.UNAVAILABLE),
        (ValueError("a secret"), grpc.StatusCode.INTERNAL),
    ],
)
def test_errors_leave_with_the_code_of_the_table(
    server: ProtocolServer, channel: grpc.Channel, error: Exception, code: grpc.StatusCode
) -> None:
    server.scorer.fail = [error]
    with pytest.raises(grpc.RpcError) as caught:
        ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(), timeout=5)
    assert caught.value.code() is code
    assert "secret" not in caught.value.details()


def test_every_serving_error_is_in_the_table() -> None:
    from serving.core import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.ServingError)]
    for kind in set(kinds) - {errors.ServingError}:
        assert code_of(kind.__new__(kind)) in set(CODES.values()), kind


def test_an_unready_server_refuses_and_says_so(server: ProtocolServer, channel: grpc.Channel) -> None:
    server.guard.ready = False
    try:
        with pytest.raises(grpc.RpcError) as caught:
            ranker_pb2_grpc.RankerStub(channel).Rank(rank_request(), timeout=5)
    finally:
        server.guard.ready = True
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the server is starting or stopping"


def test_health_and_reflection_pass_the_guard(channel: grpc.Channel) -> None:
    for service in ("", "kunlun.v1.Ranker"):
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    listed = next(call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5))
    names = {service.name for service in listed.list_services_response.service}
    ours = {f"kunlun.v1.{name}" for name in ("Ranker", "Events", "Features", "Feedback")}
    assert ours | {"grpc.health.v1.Health"} <= names


def test_a_caller_who_leaves_is_counted_as_cancelled(server: ProtocolServer, channel: grpc.Channel) -> None:
    async def set_hold(held: bool) -> None:
        if server.scorer.hold is not None:
            server.scorer.hold.set()
        server.scorer.hold = asyncio.Event() if held else None

    def cancelled() -> float:
        return server.sample("kunlun_calls_total", method="Rank", code="CANCELLED")

    before = cancelled()
    server.run(set_hold(True))
    server.scorer.entered.clear()
    call = ranker_pb2_grpc.RankerStub(channel).Rank.future(rank_request(), timeout=10)
    assert server.scorer.entered.wait(5)
    call.cancel()

    async def until_counted() -> None:
        async with asyncio.timeout(5):
            while cancelled() == before:
                await asyncio.sleep(0.01)

    server.run(until_counted())
    server.run(set_hold(False))
    assert not math.isnan(before)


def test_the_gate_refuses_before_the_message_is_parsed(server: ProtocolServer, channel: grpc.Channel) -> None:
    asked: list[float] = []
    refused: list[str] = []

    def refusal(deadline: float, priority: Priority) -> Overloaded | None:
        asked.append(deadline - time.monotonic())
        return Overloaded("the queue is full", 0.25)

    served = len(server.scorer.requests)
    unparsable = channel.unary_unary("/kunlun.v1.Ranker/Rank")
    server.guard.refusal, server.guard.refused = refusal, refused.append
    try:
        with pytest.raises(grpc.RpcError) as caught:
            unparsable(b"\xff\xff\xff", timeout=5)
    finally:
        server.guard.refusal = None
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == 250_000_000
    assert 4 < asked[0] <= 5.01
    assert refused == ["overloaded"]
    assert len(server.scorer.requests) == served
    with pytest.raises(grpc.RpcError) as caught:
        unparsable(b"\xff\xff\xff", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_gate_lets_high_priority_pass_where_it_would(server: ProtocolServer, channel: grpc.Channel) -> None:
    def refusal(deadline: float, priority: Priority) -> Overloaded | None:
        return None if priority is Priority.HIGH else Overloaded("the queue is full", 0.25)

    rank = ranker_pb2_grpc.RankerStub(channel).Rank
    server.guard.refusal = refusal
    try:
        assert rank(rank_request(priority=types_pb2.PRIORITY_HIGH), timeout=5).order
        for priority in (types_pb2.PRIORITY_UNSPECIFIED, types_pb2.PRIORITY_LOW, types_pb2.PRIORITY_NORMAL):
            with pytest.raises(grpc.RpcError, match="the queue is full"):
                rank(rank_request(priority=priority), timeout=5)
    finally:
        server.guard.refusal = None
    assert server.scorer.requests[-1].priority is Priority.HIGH
    rank(rank_request(), timeout=5)
    assert server.scorer.requests[-1].priority is Priority.NORMAL
