"""Replays held-out requests of a canonical log against a server: Rank, then impressions, clicks and events.

Requests go out in log order with the log's times. After each one the shown positions and labels are
reported with the receipt, and the events it caused are recorded, so the next request of that user
sees them, as it did in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kunlun.client import Client, Event, KunlunError, Outcome, RankReply
from model.data.canonical import LogFile, read_log
from model.data.request_log import RequestLog, load_request_log


@dataclass
class ReplayResult:
    """Per request: latency (ms) of Rank and served probabilities in the log's order; totals of errors and feedback."""

    latencies_ms: list[float] = field(default_factory=list)
    predictions: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # request number → [C, tasks]
    impressions: int = 0
    errors: int = 0
    last_error: str = ""
    rungs: dict[str, int] = field(default_factory=dict)


class Replay:
    """A canonical log, encoded for scoring offline and raw for sending over the wire. `events`: its table of events."""

    def __init__(self, directory: Path) -> None:
        self.log: RequestLog = load_request_log(directory)
        tables = read_log(directory).tables
        requests = tables[LogFile.REQUESTS]
        order = np.argsort(requests["time_ms"].to_numpy(), kind="stable")  # the order of `RequestLog`
        names = [f.name for f in self.log.schema.context if f.derived is None]
        columns = {n: requests[n].take(pa.array(order)).to_pylist() for n in names}
        self._context = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self.events = tables[LogFile.EVENTS]

    def randomized(self, count: int, rng: np.random.Generator, most: int = 200) -> Replay:
        """`count` made-up requests after the end of the log, when every event of it is history.

        Users, contexts and candidates are drawn from the log; candidate counts are heavy-tailed up to `most`.
        """
        log, copy = self.log, object.__new__(Replay)
        base = rng.integers(0, len(log), count)
        sizes = np.minimum(1 + rng.pareto(1.2, count) * 10, min(most, len(log.item_ids))).astype(np.int64)
        now = 3_600_000 + max([int(log.time_ms.max()), *(int(a.records["arrival_ms"].max()) for a in log.events.values())])
        rows = int(sizes.sum())
        copy.log = replace(
            log,
            request_ids=[f"random-{i}" for i in range(count)],
            time_ms=np.full(count, now, dtype=np.int64),
            user_index=log.user_index[base],
            contexts=log.contexts[base],
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            item_index=np.concatenate([rng.choice(len(log.item_ids), s, replace=False) for s in sizes]),
            positions=np.full(rows, -1, dtype=np.int32),
            labels=np.full((rows, len(log.schema.tasks)), np.nan, dtype=np.float32),
            columns={name: rng.uniform(0.1, 2, rows).astype(np.float32) for name in log.columns},
            truth=None,
        )
        copy._context = [self._context[b] for b in base] if self._context else []
        copy.events = self.events.slice(0, 0)
        return copy

    def run(self, client: Client, requests: NDArray[np.int64], progress: Callable[[], None]) -> ReplayResult:
        """Send `requests` (numbers in the log, ascending) one after the other."""
        result = ReplayResult()
        events = self.events_after(requests)
        for number in requests.tolist():
            began = time.perf_counter()
            try:
                reply = self.rank(client, number)
                result.latencies_ms.append(1000 * (time.perf_counter() - began))
                self._report(client, number, reply, result)
                if events[number]:
                    client.record_events(events[number])
            except KunlunError as error:
                result.errors += 1
                result.last_error = str(error)
            progress()
        return result

    def rank(self, client: Client, number: int, **options: Any) -> RankReply:
        """Rank the shown items of one logged request."""
        log, shown = self.log, self.log.shown(number)
        return client.rank(
            log.user_ids[log.user_index[number]],
            [log.item_ids[i] for i in log.item_index[shown]],
            context=self.context(number),
            columns={name: column[shown].tolist() for name, column in log.columns.items()},
            time_ms=int(log.time_ms[number]),
            request_id=log.request_ids[number][:64],
            **options,
        )

    def context(self, number: int) -> dict[str, Any]:
        """Context features of one request as the log has them."""
        given = self._context[number] if self._context else {}
        return {name: value for name, value in given.items() if value is not None}

    def events_before(self, requests: NDArray[np.int64]) -> pa.Table:
        """The log's events that had arrived before their user's first request among `requests`."""
        first = {}
        for number in requests[::-1].tolist():
            first[self.log.user_ids[self.log.user_index[number]]] = int(self.log.time_ms[number])
        arrival = self.events["arrival_ms"].to_numpy()
        never = np.iinfo(np.int64).max
        limit = np.array([first.get(u, never) for u in self.events["user_id"].to_pylist()], dtype=np.int64)
        return self.events.filter(pa.array(arrival < limit))

    def served(self, reply: RankReply) -> NDArray[np.float32]:
        """Probabilities [C, tasks] of a full reply, in the order of the request's candidates."""
        best_first = np.stack([np.asarray(reply.scores[t.name], dtype=np.float32) for t in self.log.schema.tasks], axis=1)
        in_log_order = np.empty_like(best_first)
        in_log_order[np.asarray(reply.order)] = best_first
        return in_log_order

    def _report(self, client: Client, number: int, reply: RankReply, result: ReplayResult) -> None:
        result.predictions[number] = self.served(reply)
        result.rungs[reply.rung] = result.rungs.get(reply.rung, 0) + 1
        outcome = self.outcome(number, reply)
        client.report_outcomes([outcome])
        result.impressions += len(outcome.shown)

    def outcome(self, number: int, reply: RankReply) -> Outcome:
        """What the log says became of a full reply to one of its requests."""
        labels = self.log.labels[self.log.shown(number)][np.asarray(reply.order)]  # [k, tasks] in the response's order
        tasks = enumerate(self.log.schema.tasks)
        positive = {task.name: np.flatnonzero(labels[:, t] == 1).tolist() for t, task in tasks}
        return Outcome(reply.receipt, shown=range(len(labels)), labels=positive)

    def events_after(self, requests: NDArray[np.int64]) -> dict[int, list[Event]]:
        """Events of each request's user that arrived from that request on and before the user's next one."""
        numbers = set(requests.tolist())
        starts: dict[str, list[tuple[int, int]]] = {}
        for number in sorted(numbers):
            starts.setdefault(self.log.user_ids[self.log.user_index[number]], []).append(
                (int(self.log.time_ms[number]), number)
            )
        own = self.events.filter(pa.array([u in starts for u in self.events["user_id"].to_pylist()]))
        found: dict[int, list[Event]] = {number: [] for number in numbers}
        for row in own.sort_by("arrival_ms").to_pylist():
            earlier = [number for start, number in starts[row["user_id"]] if start <= row["arrival_ms"]]
            if earlier:
                found[earlier[-1]].append(self._event(row))
        return found

    def _event(self, row: dict[str, Any]) -> Event:
        declared = self.log.schema.event(row["type"])
        attributes = {f.name: row.get(f"{declared.name}.{f.name}") for f in declared.attributes}
        return Event(
            event_id=row["event_id"],
            user_id=row["user_id"],
            type=row["type"],
            item=row["item_id"],
            time_ms=row["time_ms"],
            attributes={name: value for name, value in attributes.items() if value is not None},
        )
