"""The header by which balancers keep a user's calls on one server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from kunlun.client import Client, Event
from kunlun.routing import USER_HEADER, user_metadata
from kunlun.v1 import events_pb2, ranker_pb2

Seen = list[tuple[str, str | None]]


@pytest.fixture
def seen() -> Seen:
    """Method and user header of every call."""
    return []


@pytest.fixture
def client(seen: Seen) -> Iterator[Client]:
    """Of a server that answers everything with nothing."""

    def handler(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = details.method.rsplit("/", 1)[-1]
        seen.append((name, dict(details.invocation_metadata).get(USER_HEADER)))
        reply = {
            "Rank": ranker_pb2.RankResponse(rung=1),
            "RecordEvents": events_pb2.RecordEventsResponse(),
            "ForgetUser": events_pb2.ForgetUserResponse(),
        }[name]
        return grpc.unary_unary_rpc_method_handler(lambda request, context: reply.SerializeToString())

    class Everything(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return handler(details)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Everything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}", timeout_s=10) as opened:
        yield opened
    server.stop(0).wait(10)


def test_calls_about_one_user_say_so_and_others_do_not(client: Client, seen: Seen) -> None:
    client.rank("ann", ["a"])
    client.record_events([Event("ann", "click", "a"), Event("ann", "click", "b")])
    client.forget_user("ann")
    client.record_events([Event("ann", "click", "a"), Event("bob", "click", "a")])
    [(_, ann)] = user_metadata("ann")
    assert seen == [("Rank", ann), ("RecordEvents", ann), ("ForgetUser", ann), ("RecordEvents", None)]


def test_the_header_is_short_ascii_and_does_not_tell_who_it_is() -> None:
    values = {user: user_metadata(user)[0][1] for user in ("ann", "bob", "Žofie 东", "x" * 10_000)}
    assert len(set(values.values())) == len(values)
    for user, value in values.items():
        assert value.isascii()
        assert len(value) == 16
        assert user not in value
