"""`python -m loadtest.openloop`: sends one planned run to a server and reports what came back.

A process of its own, so that it can be pinned and its CPU time told apart. Requests are serialised
before the clock starts and replies are parsed after it has stopped; in between only bytes move. A
request's latency runs from its *scheduled* time. A run whose generator was late or busy all the time
says so (`valid`): its latencies would be the generator's, not the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop
from numpy.typing import NDArray
from pydantic import Field

from kunlun.routing import user_metadata
from kunlun.v1 import events_pb2, ranker_pb2, types_pb2
from loadtest.openloop.messages import read_messages, write_messages
from loadtest.openloop.workload import Plan, Workload, draw, of_length
from model.config import StrictModel, parse_yaml

RANK, RECORD = "/kunlun.v1.Ranker/Rank", "/kunlun.v1.Events/RecordEvents"
LATE_MS, BUSY = 5.0, 0.9
"""A generator that sends its 99th percentile later than this, or computes more than this share of the time, spoils a run."""

CANCELLED = "CANCELLED_BY_CLIENT"
SETTLE_S, READY_S = 0.2, 30.0


class Names(StrictModel):
    """How numbers become ids, and what else a request and an event carry; the defaults are the synthetic log's."""

    user: str = "u{}"
    item: str = "i{}"
    context: dict[str, str] = Field(default_factory=lambda: {"surface": "surface-0"})
    event: str = "click"
    event_attributes: dict[str, str] = Field(default_factory=lambda: {"category": "category-0"})


@dataclass
class Sample:
    """What happened to each request [N]; times in seconds from the start, NaN where there is none."""

    at: NDArray[np.float64]
    sent: NDArray[np.float64]
    latency_s: NDArray[np.float64]  # from the scheduled time
    deadline_s: NDArray[np.float64]
    candidates: NDArray[np.int64]
    user: NDArray[np.int64]
    status: list[str]
    rung: NDArray[np.int64]  # 0: no reply
    cached: NDArray[np.bool_]
    newest_event_ms: NDArray[np.float64]  # wall clock of the newest event that the reply used
    acknowledged_ms: NDArray[np.float64]  # wall clock at which the event after the request was acknowledged
    event_ms: NDArray[np.float64]  # that event's own time
    began_ms: float  # wall clock of the start
    cpu_share: float
    replies: list[bytes]

    def save(self, path: Path) -> None:
        """Everything but the replies, as one .npz file."""
        arrays: dict[str, Any] = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        np.savez(path, status=np.array(self.status), scalars=np.array([self.began_ms, self.cpu_share]), **arrays)

    @classmethod
    def load(cls, path: Path) -> Sample:
        """Inverse of `save`; without replies."""
        with np.load(path) as data:
            arrays = {k: data[k] for k in data.files if k not in ("status", "scalars")}
            began_ms, cpu_share = data["scalars"].tolist()
            return cls(status=data["status"].tolist(), began_ms=began_ms, cpu_share=cpu_share, replies=[], **arrays)

    @property
    def answered(self) -> NDArray[np.bool_]:
        return self.rung > 0

    @property
    def in_time(self) -> NDArray[np.bool_]:
        """Answered within the deadline, counted from the scheduled time."""
        return self.answered & (self.latency_s <= self.deadline_s)

    def summary(self) -> dict[str, Any]:
        """The run in numbers, milliseconds and requests per second."""
        wall = float(np.nanmax(self.at + np.nan_to_num(self.latency_s))) if len(self.at) else 0.0
        lag = (self.sent - self.at) * 1e3
        late = float(np.quantile(lag, 0.99))
        latency = self.latency_s[self.answered] * 1e3
        rungs = {ranker_rung(r): int((self.rung == r).sum()) for r in np.unique(self.rung[self.answered]).tolist()}
        statuses, counts = np.unique(np.array(self.status), return_counts=True)
        return {
            "requests": len(self.at),
            "answered": int(self.answered.sum()),
            "in_time": int(self.in_time.sum()),
            "goodput_per_s": float(self.in_time.sum() / wall) if wall else 0.0,
            "latency_ms": {f"p{q * 100:g}": _quantile(latency, q) for q in (0.5, 0.9, 0.99, 0.999)},
            "statuses": dict(zip(statuses.tolist(), counts.tolist(), strict=True)),
            "rungs": rungs,
            "state_hits": float(self.cached[self.answered].mean()) if self.answered.any() else 0.0,
            "mean_candidates": float(self.candidates.mean()),
            "send_lag_p99_ms": late,
            "client_cpu_share": self.cpu_share,
            "valid": late <= LATE_MS and self.cpu_share <= BUSY,
        }


def ranker_rung(number: int) -> str:
    """Name of a rung without its prefix."""
    return types_pb2.Rung.Name(number).removeprefix("RUNG_")


def rank_messages(plan: Plan, names: Names, items: int) -> list[bytes]:
    """Serialised requests of a plan."""
    context = _columns(names.context)
    keys = [names.item.format(i) for i in range(items)]
    return [
        ranker_pb2.RankRequest(
            request_id=f"load-{n}",
            user_id=names.user.format(user),
            candidates=types_pb2.ItemIds(keys=[keys[i] for i in plan.items(n, items)]),
            context_features=context,
        ).SerializeToString()
        for n, user in enumerate(plan.user.tolist())
    ]


class Generator:
    """Sends planned requests over one channel, or over several in turn, as many clients would."""

    def __init__(self, plan: Plan, messages: list[bytes], names: Names, items: int, prefix: str) -> None:
        self._plan, self._messages, self._names, self._items, self._prefix = plan, messages, names, items, prefix
        count = len(plan)
        users = (ranker_pb2.RankRequest.FromString(message).user_id for message in messages)
        self._metadata = [user_metadata(user) for user in users]
        self._sent, self._latency = np.full(count, np.nan), np.full(count, np.nan)
        self._acknowledged, self._event = np.full(count, np.nan), np.full(count, np.nan)
        self._status = ["UNSENT"] * count
        self._replies = [b""] * count
        self._start, self._is_stopped, self._planned = 0.0, False, count

    def stop(self) -> None:
        """Send nothing more: the run ends when what is in flight has been answered, and is about what was sent."""
        self._is_stopped = True

    async def run(self, address: str, ready_s: float = READY_S, channels: int = 1) -> Sample:
        """One run; returns when every call has ended. Raises `ConnectionError` when no server answers within `ready_s`."""
        plan = self._plan
        # Without a pool of its own, a channel shares the connections of others to the same address.
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", int(channels > 1))]
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(channels)]
            self._ranks: list[Any] = [channel.unary_unary(RANK) for channel in opened]
            self._record: Any = opened[0].unary_unary(RECORD)
            try:
                await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in opened)), ready_s)
            except TimeoutError as error:
                raise ConnectionError(
                    f"expected a server at {address}, none answered within {ready_s:g} s; start it"
                ) from error
            gc.collect()
            gc.freeze()
            gc.disable()
            tasks: set[asyncio.Task[None]] = set()
            self._start = time.monotonic() + SETTLE_S
            began_ms, cpu = (time.time() + SETTLE_S) * 1e3, time.process_time()
            for number, at in enumerate(plan.at.tolist()):
                if (wait := self._start + at - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                if self._is_stopped:
                    self._planned = number
                    break
                task = asyncio.create_task(self._send(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks)
            elapsed = time.monotonic() - self._start
            share = (time.process_time() - cpu) / (elapsed + SETTLE_S)
        gc.enable()
        return self._sample(began_ms, share)

    async def _send(self, number: int) -> None:
        plan, scheduled = self._plan, self._start + self._plan.at[number]
        now = time.monotonic()
        self._sent[number] = now - self._start
        left_s = max(1e-3, plan.deadline_s[number] - (now - scheduled))
        rank = self._ranks[number % len(self._ranks)]
        call = rank(self._messages[number], timeout=left_s, metadata=self._metadata[number])
        if (patience := plan.cancel_after_s[number]) == patience:
            asyncio.get_running_loop().call_later(patience, call.cancel)
        try:
            self._replies[number] = await call
            self._status[number] = "OK"
        except grpc.aio.AioRpcError as error:
            self._status[number] = error.code().name
        except asyncio.CancelledError:
            self._status[number] = CANCELLED
        self._latency[number] = time.monotonic() - scheduled
        if plan.event_after[number] and self._status[number] == "OK":
            await self._event_after(number)

    async def _event_after(self, number: int) -> None:
        at_ms = int(time.time() * 1e3)
        item = self._names.item.format((number * 7919) % self._items)
        event = events_pb2.Event(
            event_id=f"{self._prefix}-{number}",
            user_id=self._names.user.format(self._plan.user[number]),
            type=self._names.event,
            item=types_pb2.ItemIds(keys=[item]),
            time_ms=at_ms,
            attributes=_columns(self._names.event_attributes),
        )
        message = events_pb2.RecordEventsRequest(events=[event]).SerializeToString()
        try:
            await self._record(message, timeout=5, metadata=user_metadata(event.user_id))
        except grpc.aio.AioRpcError:
            return
        self._acknowledged[number], self._event[number] = time.time() * 1e3, at_ms

    def _sample(self, began_ms: float, cpu_share: float) -> Sample:
        plan, sent = self._plan, slice(self._planned)
        replies = [ranker_pb2.RankResponse.FromString(r) if r else None for r in self._replies[sent]]
        newest = np.full(len(replies), np.nan)
        for n, reply in enumerate(replies):
            if reply is not None and reply.newest_event_age_ms >= 0:
                newest[n] = began_ms + self._sent[n] * 1e3 - reply.newest_event_age_ms
        return Sample(
            at=plan.at[sent],
            sent=self._sent[sent],
            latency_s=self._latency[sent],
            deadline_s=plan.deadline_s[sent],
            candidates=plan.candidates[sent],
            user=plan.user[sent],
            status=self._status[sent],
            rung=np.array([0 if r is None else r.rung for r in replies]),
            cached=np.array([r is not None and r.user_state_cached for r in replies]),
            newest_event_ms=newest,
            acknowledged_ms=self._acknowledged[sent],
            event_ms=self._event[sent],
            began_ms=began_ms,
            cpu_share=cpu_share,
            replies=self._replies[sent],
        )


def _columns(values: Mapping[str, str]) -> list[types_pb2.FeatureColumn]:
    return [
        types_pb2.FeatureColumn(name=name, string_values=types_pb2.StringValues(values=[value]))
        for name, value in values.items()
    ]


def _quantile(values: NDArray[np.float64], q: float) -> float | None:
    return float(np.quantile(values, q)) if len(values) else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.openloop", description=__doc__)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--workload",
        required=True,
        help="a mapping in YAML with the fields of Workload, e.g. '{rate: 50, seconds: 10}'",
    )
    parser.add_argument("--names", default="{}", help="the same with the fields of Names (default: the synthetic log's)")
    parser.add_argument("--channels", type=int, default=1, help="connections, used in turn (default: 1)")
    parser.add_argument("--cpu", type=int, help="pin the generator to this CPU")
    parser.add_argument("--output", type=Path, help="write every request's figures here (.npz)")
    parser.add_argument("--plot", type=Path, help="write a plot of latencies here (.png or .svg)")
    parser.add_argument("--replies", type=Path, help="write the raw replies here (length-prefixed RankResponse messages)")
    parser.add_argument("--messages", type=Path, help="send these RankRequests once each, in place of the workload's own")
    parser.add_argument("--event-prefix", default=f"load-{os.getpid()}", help="of event ids; another run needs another one")
    arguments = parser.parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    workload = parse_yaml(Workload, arguments.workload)
    names = parse_yaml(Names, arguments.names)
    plan = draw(workload)
    if arguments.messages is not None:
        messages = read_messages(arguments.messages)
        plan = of_length(plan, len(messages), workload)
    else:
        messages = rank_messages(plan, names, workload.items)
    generator = Generator(plan, messages, names, workload.items, arguments.event_prefix)
    signal.signal(signal.SIGTERM, lambda number, frame: generator.stop())
    sample = uvloop.run(generator.run(arguments.server, channels=arguments.channels))
    if arguments.output is not None:
        sample.save(arguments.output)
    if arguments.replies is not None:
        write_messages(arguments.replies, sample.replies)
    if arguments.plot is not None:
        from loadtest.openloop.report import plot_latencies

        plot_latencies({"this run": sample}, arguments.plot)
    summary = sample.summary()
    sys.stdout.write(json.dumps(summary | {"workload": workload.model_dump(), "ok": summary["valid"]}) + "\n")
    return 0
