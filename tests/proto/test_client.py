"""The Python client against a real server: replies, errors with their details, retries inside the deadline."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from protocol_server import ProtocolServer, protocol_server

from kunlun.client import Client, Event, FieldViolation, KunlunError, Outcome
from kunlun.v1 import events_pb2
from serving.core.errors import Overloaded, StoreUnavailable

ITEMS = ["a", "b", "c", "d"]
BIDS = {"bid": [1.0, 2.0, 3.0, 4.0]}


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


@pytest.fixture
def client(server: ProtocolServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=5) as opened:
        yield opened


def test_rank_then_click_then_report(client: Client, server: ProtocolServer) -> None:
    reply = client.rank(
        "ann",
        ITEMS,
        context={"surface": "home", "page": 2},
        user={"age": 40.0},
        item_features={"genres": [["x", "y"], [], ["x"], ["y"]], "price": [1.0, 2, 3, 4], "brand": [1, 2, 3, 4]},
        columns=BIDS,
        top_k=3,
        include_timings=True,
    )
    assert len(reply.items) == len(reply.values) == len(reply.scores["click"]) == 3
    assert list(reply.items) == [ITEMS[at] for at in reply.order]
    assert list(reply.values) == sorted(reply.values, reverse=True)
    assert (reply.rung, reply.history_length, reply.newest_event_age_ms) == ("FULL", 0, -1)
    assert reply.timings is not None
    assert reply.timings["score_us"] == 4000
    core = server.scorer.requests[-1]
    assert core.candidates.overrides is not None
    assert (core.candidates.overrides.records["genres"] != -(2**63)).sum(axis=1).tolist() == [2, 0, 1, 1]

    token = client.record_events([Event("ann", "click", reply.items[0], {"dwell": 3.5})])
    assert (token.stored, token.duplicates) == (1, 0)
    assert client.rank("ann", ITEMS, columns=BIDS, after=token).history_length == 1
    assert server.scorer.requests[-1].min_event_version == 1
    assert client.report_outcomes([Outcome(reply.receipt, shown=[0, 1], labels={"click": [0]})]) == 1


def test_a_repeated_event_is_stored_once(client: Client) -> None:
    event = Event("bob", "click", "a")
    assert client.record_events([event]).stored == 1
    assert client.record_events([event]).duplicates == 1


def test_numpy_values_work_without_the_client_needing_numpy(client: Client, server: ProtocolServer) -> None:
    import numpy as np

    client.rank("ann", np.array(ITEMS), columns={"bid": np.arange(4, dtype=np.float32)}, context={"page": np.float32(3)})  # type: ignore[arg-type]
    assert server.scorer.requests[-1].candidates.columns["bid"].tolist() == [0, 1, 2, 3]
    assert server.scorer.requests[-1].context["page"].tolist() == [3]


def test_bad_input_names_the_field(client: Client) -> None:
    with pytest.raises(KunlunError, match="INVALID_ARGUMENT: context_features: expected a context feature") as caught:
        client.rank("ann", ITEMS, columns=BIDS, context={"surfac": "home"})
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.violations == (
        FieldViolation("context_features", "expected a context feature (did you mean 'surface'?), found 'surfac'"),
    )
    with pytest.raises(KunlunError, match="NOT_FOUND: version: expected '7'"):
        client.rank("ann", ITEMS, columns=BIDS, version="99")


def test_mixed_values_are_refused_before_they_are_sent(client: Client, server: ProtocolServer) -> None:
    before = len(server.scorer.requests)
    with pytest.raises(TypeError, match="items: expected strings or integers, found int, str"):
        client.rank("ann", ["a", 1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="surface: expected strings, integers or numbers, found NoneType"):
        client.rank("ann", ITEMS, context={"surface": None})  # type: ignore[dict-item]
    assert len(server.scorer.requests) == before


def test_overload_is_retried_after_the_advised_pause(client: Client, server: ProtocolServer) -> None:
    server.scorer.fail = [Overloaded("full", 0.1), StoreUnavailable("away")]
    began = time.monotonic()
    assert client.rank("ann", ITEMS, columns=BIDS).rung == "FULL"
    assert time.monotonic() - began >= 0.3, "0.1 s of advice, then the 0.2 s of an unavailable store"


def test_no_retry_leaves_the_deadline(server: ProtocolServer) -> None:
    server.scorer.fail = [Overloaded("full", 10.0)]
    began = time.monotonic()
    with Client(server.address, timeout_s=1) as client, pytest.raises(KunlunError, match="RESOURCE_EXHAUSTED: full") as caught:
        client.rank("ann", ITEMS, columns=BIDS)
    assert caught.value.retry_after_s == 10.0
    assert time.monotonic() - began < 1


def test_retries_are_counted_and_can_be_turned_off(server: ProtocolServer) -> None:
    server.scorer.fail = [StoreUnavailable("away")]
    with Client(server.address, timeout_s=5, retries=0) as client, pytest.raises(KunlunError, match="UNAVAILABLE: away"):
        client.rank("ann", ITEMS, columns=BIDS)
    assert server.scorer.fail == []


def test_a_call_that_a_stopping_server_dropped_is_repeated() -> None:
    with dropping_server(drops=1) as address, Client(address, timeout_s=5) as client:
        assert client.record_events([Event("ann", "click", "a")]).stored == 1
    with (
        dropping_server(drops=1) as address,
        Client(address, timeout_s=5, retries=0) as once,
        pytest.raises(KunlunError, match="CANCELLED"),
    ):
        once.record_events([Event("ann", "click", "a")])


@contextmanager
def dropping_server(drops: int) -> Iterator[str]:
    """A gRPC server that drops the first calls as one does that is told to stop while it receives them."""
    left = iter(range(drops))

    def record(request: bytes, context: grpc.ServicerContext) -> bytes:
        if next(left, None) is not None:
            context.cancel()
        return events_pb2.RecordEventsResponse(stored=1).SerializeToString()

    service = events_pb2.DESCRIPTOR.services_by_name["Events"].full_name
    server = grpc.server(ThreadPoolExecutor(1))
    methods = {"RecordEvents": grpc.unary_unary_rpc_method_handler(record)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(10)


def test_unusable_requests_are_not_retried(client: Client, server: ProtocolServer) -> None:
    before = server.sample("kunlun_calls_total", method="Rank", code="INVALID_ARGUMENT")
    with pytest.raises(KunlunError, match="user_id"):
        client.rank("", ITEMS, columns=BIDS)
    assert server.sample("kunlun_calls_total", method="Rank", code="INVALID_ARGUMENT") == before + 1


def test_health_follows_the_server(client: Client, server: ProtocolServer) -> None:
    assert client.health()
    server.run(server.health.starting())
    assert not client.health()
    server.run(server.health.serving())
    assert client.health()


def test_an_unreachable_server_is_an_error_within_the_deadline() -> None:
    with Client("127.0.0.1:1", timeout_s=0.5) as client:
        assert not client.health()
        with pytest.raises(KunlunError, match="UNAVAILABLE") as caught:
            client.rank("ann", ITEMS)
    assert caught.value.violations == ()
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_the_client_imports_grpc_and_protobuf_alone() -> None:
    code = (
        "import sys, kunlun.client, kunlun.rank; "
        "allowed = {'grpc', 'google', 'kunlun', 'typing_extensions', 'cython_runtime'} | set(sys.stdlib_module_names); "
        "roots = {m.split('.')[0] for m in sys.modules if not m.startswith('_')} - allowed; "
        "print(sorted(r for r in roots if not r.startswith('grpc_')))"  # grpc itself tries its optional companions
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", _with_paths(code)], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def _with_paths(code: str) -> str:
    """`code` under -S (no .pth files run at start-up), with this interpreter's search path."""
    return f"import sys; sys.path[:] = {sys.path!r}; {code}"
