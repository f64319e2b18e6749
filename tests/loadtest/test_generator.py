"""The open-loop generator against a real gRPC server: what it sends, what it counts, and from when it counts."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from protocol_server import ProtocolServer, protocol_server, shop_schema

from kunlun.v1 import ranker_pb2
from loadtest.openloop.generator import CANCELLED, LATE_MS, Generator, Names, Sample, rank_messages
from loadtest.openloop.messages import read_messages, write_messages
from loadtest.openloop.workload import Plan, Workload, draw
from serving.core.errors import Overloaded, StoreUnavailable
from serving.core.types import RankRequest, RankResult
from tests.conftest import SEED

ITEMS = 200
BASE = Workload(
    rate=100, seconds=1, seed=SEED, users=20, items=ITEMS, candidates_mean=10, candidates_max=40, deadline_ms=10_000
)
NAMES = Names(event_attributes={})


@pytest.fixture(scope="module")
def running() -> Iterator[ProtocolServer]:
    with protocol_server(shop_schema(request_columns=[], value="p_click + p_like")) as server:
        yield server


@pytest.fixture
def server(running: ProtocolServer) -> Iterator[ProtocolServer]:
    """The server as it started; the event store alone remembers."""
    yield running
    running.scorer.fail, running.scorer.hold = [], None
    running.scorer.requests.clear()
    vars(running.scorer).pop("rank", None)
    gc.unfreeze()  # the generator freezes what it finds: it expects a process of its own


def send(server: ProtocolServer, plan: Plan, disturb: Callable[[], None] | None = None) -> Sample:
    """Send a plan from this process; `disturb` runs on the generator's loop once a quarter of it has arrived."""
    messages = rank_messages(plan, NAMES, ITEMS)
    generator = Generator(plan, messages, NAMES, ITEMS, f"test-{time.monotonic_ns()}")

    async def disturb_later() -> None:
        while len(server.scorer.requests) < len(plan) / 4:
            await asyncio.sleep(0.002)
        if disturb is not None:
            disturb()

    async def main() -> Sample:
        running = asyncio.create_task(generator.run(server.address))
        if disturb is not None:
            await asyncio.wait_for(disturb_later(), 30)
        return await asyncio.wait_for(running, 30)

    return asyncio.run(main())


def serve_one_at_a_time(server: ProtocolServer, seconds: float) -> None:
    """Make the server a queue with a fixed service time."""
    turn, answer = asyncio.Lock(), server.scorer.rank

    async def rank(request: RankRequest) -> RankResult:
        async with turn:
            await asyncio.sleep(seconds)
            return await answer(request)

    server.scorer.rank = rank  # type: ignore[method-assign]


def test_every_planned_request_is_sent_once_and_as_planned(server: ProtocolServer) -> None:
    plan = draw(BASE)
    sample = send(server, plan)
    received = {request.request_id: request for request in server.scorer.requests}
    assert len(server.scorer.requests) == len(received) == len(plan)
    for number in range(len(plan)):
        request = received[f"load-{number}"]
        assert request.user_id == f"u{plan.user[number]}"
        assert len(request.candidates.keys) == plan.candidates[number]
    assert Counter(sample.status) == {"OK": len(plan)}
    assert sample.answered.all()
    assert (sample.sent >= plan.at).all()
    assert (sample.latency_s > sample.sent - sample.at).all()
    replies = [ranker_pb2.RankResponse.FromString(reply) for reply in sample.replies]
    assert [reply.request_id for reply in replies] == [f"load-{n}" for n in range(len(plan))]
    assert [len(reply.order) for reply in replies] == plan.candidates.tolist()


def test_a_slow_server_does_not_slow_the_load_down(server: ProtocolServer) -> None:
    service_s = 0.02
    serve_one_at_a_time(server, service_s)
    sample = send(server, draw(BASE))  # 100 requests a second for one that serves at most 50
    ends = np.sort(sample.at + sample.latency_s)
    assert Counter(sample.status) == {"OK": len(sample.at)}
    assert (ends >= sample.at[0] + service_s * np.arange(1, len(ends) + 1)).all(), "faster than the server can be"
    assert np.quantile(sample.sent - sample.at, 0.9) < 5 * service_s, "requests waited for replies before they were sent"
    assert sample.latency_s[-10:].mean() > sample.latency_s[:10].mean() + 0.3 * service_s * len(ends)
    assert sample.summary()["goodput_per_s"] <= 1 / service_s


def test_latency_counts_from_the_scheduled_time_and_a_late_generator_says_so(server: ProtocolServer) -> None:
    pause_s = 0.3
    sample = send(server, draw(BASE), disturb=lambda: time.sleep(pause_s))
    late = sample.sent - sample.at
    assert late.max() > 0.5 * pause_s
    assert (sample.latency_s > late).all()
    summary = sample.summary()
    assert summary["send_lag_p99_ms"] > LATE_MS
    assert not summary["valid"]


def test_statuses_are_counted(server: ProtocolServer) -> None:
    server.scorer.fail = [Overloaded("full", 0.1)] * 5 + [StoreUnavailable("gone")] * 3
    plan = draw(BASE)
    sample = send(server, plan)
    expected = {"OK": len(plan) - 8, "RESOURCE_EXHAUSTED": 5, "UNAVAILABLE": 3}
    assert Counter(sample.status) == sample.summary()["statuses"] == expected
    assert sample.answered.sum() == sample.in_time.sum() == len(plan) - 8
    assert [bool(reply) for reply in sample.replies] == [status == "OK" for status in sample.status]


def test_cancelled_and_expired_calls_are_told_apart(server: ProtocolServer) -> None:
    server.scorer.hold = asyncio.Event()  # nobody is ever answered
    changes = {"cancel_share": 0.5, "cancel_within_ms": 100.0, "deadline_ms": 600.0}
    plan = draw(BASE.model_copy(update=changes))
    sample = send(server, plan)
    cancelled = np.isfinite(plan.cancel_after_s)
    assert 0 < cancelled.sum() < len(plan)
    assert sample.status == np.where(cancelled, CANCELLED, "DEADLINE_EXCEEDED").tolist()
    assert (sample.latency_s[cancelled] >= plan.cancel_after_s[cancelled] - 1e-3).all()
    assert (sample.latency_s[~cancelled] >= 0.6 - 1e-2).all()
    assert not sample.answered.any()
    assert sample.summary()["latency_ms"]["p50"] is None


def test_events_follow_answered_requests_and_are_acknowledged(server: ProtocolServer) -> None:
    server.scorer.fail = [Overloaded("full", 0.1)] * 10
    plan, before_ms = draw(BASE.model_copy(update={"event_share": 0.5})), time.time() * 1e3
    sample = send(server, plan)
    followed = plan.event_after & np.array([status == "OK" for status in sample.status])
    assert 0 < followed.sum() < plan.event_after.sum()
    np.testing.assert_array_equal(np.isfinite(sample.acknowledged_ms), followed)
    np.testing.assert_array_equal(np.isfinite(sample.event_ms), followed)
    assert (sample.acknowledged_ms[followed] >= sample.event_ms[followed]).all()
    assert before_ms <= sample.began_ms <= sample.event_ms[followed].min()
    again = send(server, plan)
    had_events = np.isin(plan.user, plan.user[followed])
    assert np.isfinite(again.newest_event_ms[had_events]).all(), "users with events have a newest one"
    sent_ms = again.began_ms + again.sent[had_events] * 1e3
    age_ms = 5  # that the stand-in reports
    np.testing.assert_allclose(sent_ms - again.newest_event_ms[had_events], age_ms, atol=1e-2)


def test_a_sample_survives_its_file(server: ProtocolServer, tmp_path: Path) -> None:
    server.scorer.fail = [Overloaded("full", 0.1)] * 3
    sample = send(server, draw(BASE.model_copy(update={"seconds": 0.3, "event_share": 0.5})))
    sample.save(tmp_path / "sample.npz")
    loaded = Sample.load(tmp_path / "sample.npz")
    assert loaded.replies == []
    for name, value in vars(sample).items():
        if name != "replies":
            np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)
    assert loaded.summary() == sample.summary()


def test_without_a_server_the_run_ends_with_an_explanation() -> None:
    plan = draw(BASE)
    generator = Generator(plan, rank_messages(plan, NAMES, ITEMS), NAMES, ITEMS, "nobody")
    with pytest.raises(ConnectionError, match=r"expected a server at 127\.0\.0\.1:1, none answered within 0\.2 s"):
        asyncio.run(generator.run("127.0.0.1:1", ready_s=0.2))


def by_hand(**changes: Any) -> Sample:
    """Five requests, a second apart: two in time, one late, one refused, one cancelled."""
    nan = float("nan")
    fields: dict[str, Any] = {
        "at": np.arange(5.0),
        "sent": np.arange(5.0) + 0.001,
        "latency_s": np.array([0.1, 0.2, 1.0, 0.01, 0.02]),
        "deadline_s": np.full(5, 0.5),
        "candidates": np.array([10, 20, 30, 40, 50]),
        "user": np.zeros(5, np.int64),
        "status": ["OK", "OK", "OK", "RESOURCE_EXHAUSTED", CANCELLED],
        "rung": np.array([1, 1, 2, 0, 0]),
        "cached": np.array([True, False, False, False, False]),
        "newest_event_ms": np.full(5, nan),
        "acknowledged_ms": np.full(5, nan),
        "event_ms": np.full(5, nan),
        "began_ms": 0.0,
        "cpu_share": 0.2,
        "replies": [],
    }
    return Sample(**fields | changes)


def test_summary_of_a_sample_made_by_hand() -> None:
    summary = by_hand().summary()
    assert summary["latency_ms"].keys() == {"p50", "p90", "p99", "p99.9"}
    assert summary["latency_ms"]["p50"] == pytest.approx(200), "of what was answered"
    assert summary["latency_ms"]["p99.9"] == pytest.approx(1000, rel=0.01)
    assert (summary["requests"], summary["answered"], summary["in_time"]) == (5, 3, 2)
    assert summary["goodput_per_s"] == pytest.approx(2 / 4.02), "until the last call has ended"
    assert summary["statuses"] == {"OK": 3, "RESOURCE_EXHAUSTED": 1, CANCELLED: 1}
    assert sorted(summary["rungs"].values()) == [1, 2]
    assert summary["rungs"]["FULL"] == 2
    assert summary["state_hits"] == pytest.approx(1 / 3)
    assert summary["mean_candidates"] == 30
    assert summary["send_lag_p99_ms"] == pytest.approx(1)
    assert summary["valid"]
    assert not by_hand(cpu_share=0.95).summary()["valid"]
    assert not by_hand(sent=np.arange(5.0) + 0.02).summary()["valid"]


def command(*arguments: str) -> dict[str, Any]:
    """The figures that `python -m loadtest.openloop` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.openloop", *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def test_the_command_writes_figures_sample_replies_and_plot(server: ProtocolServer, tmp_path: Path) -> None:
    sample, replies, plot = tmp_path / "sample.npz", tmp_path / "replies.bin", tmp_path / "plot.svg"
    figures = command(
        *("--server", server.address, "--workload", BASE.model_dump_json(), "--names", "{event_attributes: {}}"),
        *("--output", str(sample), "--replies", str(replies), "--plot", str(plot)),
    )
    plan = draw(BASE)
    assert (figures["requests"], figures["answered"], figures["statuses"]) == (len(plan), len(plan), {"OK": len(plan)})
    assert figures["workload"] == BASE.model_dump()
    assert figures["ok"] == figures["valid"]
    loaded = Sample.load(sample)
    np.testing.assert_array_equal(loaded.at, plan.at)
    assert loaded.summary() == {name: value for name, value in figures.items() if name not in ("workload", "ok")}
    assert len(read_messages(replies)) == len(plan)
    assert "<svg" in plot.read_text()


def test_the_command_sends_given_messages_once_each_and_in_order(server: ProtocolServer, tmp_path: Path) -> None:
    file, replies = tmp_path / "messages.bin", tmp_path / "replies.bin"
    plan = draw(BASE)
    messages = rank_messages(plan, NAMES, ITEMS)[:30]
    write_messages(file, messages)
    figures = command(
        *("--server", server.address, "--workload", "{rate: 100, seconds: 0.1}"),
        *("--messages", str(file), "--replies", str(replies)),
    )
    assert figures["statuses"] == {"OK": 30}
    assert sorted(r.request_id for r in server.scorer.requests) == sorted(f"load-{n}" for n in range(30))
    answered = [ranker_pb2.RankResponse.FromString(reply).request_id for reply in read_messages(replies)]
    assert answered == [f"load-{n}" for n in range(30)]
