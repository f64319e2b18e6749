"""RankStream over real gRPC: out of order, errors and deadlines of single messages, cancellation, back-pressure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from protocol_server import ProtocolServer, protocol_server

from kunlun.client import Client, RankQuery, StreamReply
from kunlun.v1 import ranker_pb2
from serving.core.errors import Overloaded
from serving.core.types import RankRequest, RankResult
from serving.protocol.ranker_service import MAX_STREAM_IN_FLIGHT

ITEMS = [f"item{i}" for i in range(10)]


@pytest.fixture
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


@pytest.fixture
def client(server: ProtocolServer) -> Iterator[Client]:
    with Client(server.address) as opened:
        yield opened


def query(request_id: str, user: str = "anna", budget_ms: int = 5000) -> RankQuery:
    return RankQuery(user, ITEMS, columns={"bid": [1.0] * 10}, request_id=request_id, budget_ms=budget_ms)


def hold_user(server: ProtocolServer, user: str, count: int = 1) -> tuple[threading.Event, list[str]]:
    """Ranks of `user` wait until the event is set; the list names those that were cancelled.

    `entered` is set once `count` of them wait.
    """
    release, cancelled, rank = threading.Event(), list[str](), server.scorer.rank
    waiting = set()

    async def held(request: RankRequest) -> RankResult:
        try:
            while request.user_id == user and not release.is_set():
                waiting.add(request.request_id)
                if len(waiting) >= count:
                    server.scorer.entered.set()
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            cancelled.append(request.request_id)
            raise
        return await rank(request)

    server.scorer.rank = held  # type: ignore[method-assign]
    return release, cancelled


def test_replies_are_those_of_single_calls(client: Client) -> None:
    queries = [query(f"r{n}", user=f"user{n}") for n in range(200)]
    answers = {answer.request_id: answer for answer in client.rank_stream(queries, timeout_s=20)}
    assert len(answers) == 200
    for asked in queries[::20]:
        alone = client.rank(asked.user_id, ITEMS, columns=asked.columns)
        streamed = answers[asked.request_id].reply
        assert streamed is not None
        assert (streamed.order, streamed.scores, streamed.values) == (alone.order, alone.scores, alone.values)


def test_replies_overtake_a_slow_one(server: ProtocolServer, client: Client) -> None:
    release, _ = hold_user(server, "slow")
    answers = client.rank_stream([query("first", user="slow"), query("second"), query("third")], timeout_s=20)
    assert {next(answers).request_id, next(answers).request_id} == {"second", "third"}
    release.set()
    assert [answer.request_id for answer in answers] == ["first"]


def test_an_error_is_an_answer_and_the_stream_goes_on(server: ProtocolServer, client: Client) -> None:
    server.scorer.fail = [Overloaded("the queue is full", 0.125)]
    answers = client.rank_stream(iter([query("a")]), timeout_s=20)
    overloaded = next(answers).error
    assert overloaded is not None
    assert (overloaded.code, overloaded.retry_after_s) == ("RESOURCE_EXHAUSTED", 0.125)
    huge = RankQuery("anna", ["x" * 200_000], request_id="huge")
    given = [query(""), query("no-user", user=""), huge, query("good")]
    found: dict[str, StreamReply] = {}
    unread = []
    for answer in client.rank_stream(given, timeout_s=20):
        if answer.request_id:
            found[answer.request_id] = answer
        else:
            assert answer.error is not None
            unread.append(answer.error.message)
    assert found["good"].reply is not None
    error = found["no-user"].error
    assert error is not None
    assert (error.code, error.violations[0].field) == ("INVALID_ARGUMENT", "user_id")
    assert sorted(m.split(":")[0] for m in unread) == ["message", "rank.request_id"]


def test_an_id_in_flight_is_refused(server: ProtocolServer, client: Client) -> None:
    release, _ = hold_user(server, "slow")
    answers = client.rank_stream([query("same", user="slow"), query("same")], timeout_s=20)
    error = next(answers).error
    assert error is not None
    assert "an id that is not in flight" in error.message
    release.set()
    assert [answer.reply is not None for answer in answers] == [True]


def test_each_message_has_its_own_deadline(server: ProtocolServer, client: Client) -> None:
    release, cancelled = hold_user(server, "slow")
    answers = client.rank_stream([query("late", "slow", budget_ms=50), query("patient", "slow")], timeout_s=20)
    late = next(answers)
    assert late.error is not None
    assert (late.request_id, late.error.code) == ("late", "DEADLINE_EXCEEDED")
    assert cancelled == ["late"]
    release.set()
    assert next(answers).reply is not None


def test_ending_the_stream_cancels_what_is_in_flight(server: ProtocolServer, client: Client) -> None:
    _, cancelled = hold_user(server, "slow", count=2)
    answers = client.rank_stream([query("quick"), query("a", "slow"), query("b", "slow")], timeout_s=20)
    assert next(answers).request_id == "quick"  # its own Rank says `entered`, too
    server.scorer.entered.clear()
    assert server.scorer.entered.wait(5)
    answers.close()  # type: ignore[attr-defined]

    async def until_cancelled() -> None:
        async with asyncio.timeout(5):
            while len(cancelled) < 2:
                await asyncio.sleep(0.005)

    server.run(until_cancelled())
    assert sorted(cancelled) == ["a", "b"]


def test_in_flight_messages_are_bounded(server: ProtocolServer, client: Client) -> None:
    release, _ = hold_user(server, "slow")
    count = MAX_STREAM_IN_FLIGHT + 20
    queries = [query(f"r{n}", "slow") for n in range(count)]
    answers = client.rank_stream(queries, timeout_s=20)
    began, rank, most = [0], server.scorer.rank, [0]

    async def counted(request: RankRequest) -> RankResult:
        began[0] += 1
        most[0] = max(most[0], began[0])
        if began[0] == MAX_STREAM_IN_FLIGHT:
            asyncio.get_running_loop().call_later(0.1, release.set)
        try:
            return await rank(request)
        finally:
            began[0] -= 1

    server.scorer.rank = counted  # type: ignore[method-assign]
    assert sum(answer.reply is not None for answer in answers) == count
    assert most[0] == MAX_STREAM_IN_FLIGHT


def test_unread_messages_name_no_request() -> None:
    assert StreamReply.of(ranker_pb2.RankStreamResponse(status=ranker_pb2.RankStatus(code=3))).request_id == ""
