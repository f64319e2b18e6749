"""What callers pass to the client and get back: plain frozen dataclasses, and their conversion to messages.

Values are given as Python numbers, strings, or sequences of them; numpy arrays work, but numpy is not
needed. Integers travel as 64-bit ids, floats as numbers, strings as strings.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import grpc

from kunlun.errors import KunlunError
from kunlun.v1 import events_pb2, feedback_pb2, ranker_pb2, types_pb2

Value = str | int | float
Values = Value | Sequence[Value]


@dataclass(frozen=True)
class RankReply:
    """An ordered list, best first; all sequences are parallel. See `kunlun.v1.RankResponse`."""

    request_id: str
    model: str
    version: str
    items: tuple[str, ...] | tuple[int, ...]
    order: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    values: tuple[float, ...]
    rung: str
    rung_reason: str
    newest_event_age_ms: int
    history_length: int
    user_state_cached: bool
    unknown_items: int
    unknown_user: bool
    receipt: bytes
    timings: Mapping[str, int] | None

    @classmethod
    def of(cls, message: ranker_pb2.RankResponse) -> RankReply:
        """The reply as plain values."""
        timings = message.timings
        return cls(
            request_id=message.request_id,
            model=message.model,
            version=message.version,
            items=tuple(message.items.keys) or tuple(message.items.ids),
            order=tuple(message.order),
            scores={task.task: tuple(task.scores) for task in message.scores},
            values=tuple(message.values),
            rung=types_pb2.Rung.Name(message.rung).removeprefix("RUNG_"),
            rung_reason=message.rung_reason,
            newest_event_age_ms=message.newest_event_age_ms,
            history_length=message.history_length,
            user_state_cached=message.user_state_cached,
            unknown_items=message.unknown_items,
            unknown_user=message.unknown_user,
            receipt=message.receipt,
            timings={f.name: getattr(timings, f.name) for f in timings.DESCRIPTOR.fields}
            if message.HasField("timings")
            else None,
        )


@dataclass(frozen=True)
class RankQuery:
    """One ranking request; see `kunlun.client.Client.rank`. `budget_ms`: its deadline on a stream (0: the server's default).

    `priority`: low, normal or high; empty: normal.
    """

    user_id: str
    items: Sequence[str] | Sequence[int]
    context: Mapping[str, Values] | None = None
    user: Mapping[str, Values] | None = None
    item_features: Mapping[str, Sequence[Values]] | None = None
    columns: Mapping[str, Sequence[Value]] | None = None
    top_k: int = 0
    include_timings: bool = False
    after: EventToken | str = ""
    request_id: str = ""
    model: str = ""
    version: str = ""
    time_ms: int = 0
    budget_ms: int = 0
    priority: str = ""

    def message(self) -> ranker_pb2.RankRequest:
        """The query on the wire."""
        return ranker_pb2.RankRequest(
            request_id=self.request_id,
            user_id=self.user_id,
            model=self.model,
            version=self.version,
            candidates=item_ids(self.items),
            candidate_features=per_item(self.item_features, self.columns),
            context_features=one_row(self.context),
            user_features=one_row(self.user),
            top_k=self.top_k,
            include_timings=self.include_timings,
            min_event_token=self.after.token if isinstance(self.after, EventToken) else self.after,
            time_ms=self.time_ms,
            priority=_priority(self.priority),
        )

    def stream_message(self) -> ranker_pb2.RankStreamRequest:
        """The query as a message of a stream."""
        return ranker_pb2.RankStreamRequest(rank=self.message(), budget_ms=self.budget_ms)


@dataclass(frozen=True)
class StreamReply:
    """The answer to one query of a stream: a reply, or the error of this query alone."""

    request_id: str
    reply: RankReply | None
    error: KunlunError | None

    @classmethod
    def of(cls, message: ranker_pb2.RankStreamResponse) -> StreamReply:
        """The answer as plain values."""
        if message.HasField("rank"):
            return cls(message.request_id, RankReply.of(message.rank), None)
        status = message.status
        name = next((code.name for code in grpc.StatusCode if code.value[0] == status.code), "UNKNOWN")
        return cls(message.request_id, None, KunlunError.read(name, status.message, status.details))


@dataclass(frozen=True)
class Event:
    """Something a user did. The id and the time are fixed here, so that sending it again has no effect."""

    user_id: str
    type: str
    item: str | int
    attributes: Mapping[str, Values] = field(default_factory=dict)
    time_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def message(self) -> events_pb2.Event:
        """The event on the wire."""
        return events_pb2.Event(
            event_id=self.event_id,
            user_id=self.user_id,
            type=self.type,
            item=item_ids([self.item]),
            time_ms=self.time_ms,
            attributes=[column(name, [value]) for name, value in self.attributes.items()],
        )


@dataclass(frozen=True)
class EventToken:
    """Acknowledgement of events; pass it to `rank(after=...)` to read at least these events."""

    token: str
    stored: int
    duplicates: int


@dataclass(frozen=True)
class Outcome:
    """What became of a reply: positions shown (the examples), and per task the positions that turned positive."""

    receipt: bytes
    shown: Sequence[int] = ()
    labels: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def message(self) -> feedback_pb2.Outcome:
        """The outcome on the wire."""
        labels = [
            feedback_pb2.Label(position=position, task=task)
            for task, positions in self.labels.items()
            for position in positions
        ]
        return feedback_pb2.Outcome(receipt=self.receipt, shown=self.shown, labels=labels)


def item_ids(items: Sequence[str] | Sequence[int] | Sequence[str | int]) -> types_pb2.ItemIds:
    """Item ids on the wire: strings as keys, integers as ids."""
    every = _plain(items)
    if all(isinstance(item, str) for item in every):
        return types_pb2.ItemIds(keys=every)
    if all(isinstance(item, Integral) for item in every):
        return types_pb2.ItemIds(ids=every)
    raise TypeError(f"items: expected strings or integers, found {_kinds(every)}")


def column(name: str, rows: Sequence[Values], *, many: bool = False) -> types_pb2.FeatureColumn:
    """A feature column: one value per row, or with `many` (or when rows are sequences) several."""
    every = _plain(rows)
    if not many and not any(_is_many(row) for row in every):
        return _column(name, every)
    parts = [_plain(row) if _is_many(row) else [row] for row in every]
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return _column(name, [value for part in parts for value in part], offsets)


def _priority(name: str) -> types_pb2.Priority:
    known = [n.removeprefix("PRIORITY_").lower() for n in types_pb2.Priority.keys()[1:]]
    if name and name not in known:
        raise ValueError(f"priority: expected one of {', '.join(known)} (or nothing), found {name!r}")
    priority: types_pb2.Priority = types_pb2.Priority.Value(f"PRIORITY_{(name or 'unspecified').upper()}")  # type: ignore[assignment]
    return priority


def one_row(features: Mapping[str, Values] | None) -> list[types_pb2.FeatureColumn]:
    """Columns of a single row (context, user features)."""
    return [column(name, [value]) for name, value in (features or {}).items()]


def per_item(*groups: Mapping[str, Sequence[Values]] | None) -> list[types_pb2.FeatureColumn]:
    """Columns with one row per candidate."""
    return [column(name, rows) for group in groups for name, rows in (group or {}).items()]


def _column(name: str, values: list[Any], offsets: Sequence[int] = ()) -> types_pb2.FeatureColumn:
    if all(isinstance(value, str) for value in values):
        return types_pb2.FeatureColumn(name=name, string_values=types_pb2.StringValues(values=values), offsets=offsets)
    if all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
        return types_pb2.FeatureColumn(name=name, int64_values=types_pb2.Int64Values(values=values), offsets=offsets)
    if all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        return types_pb2.FeatureColumn(name=name, float_values=types_pb2.FloatValues(values=values), offsets=offsets)
    raise TypeError(f"{name}: expected strings, integers or numbers, found {_kinds(values)}")


def _is_many(value: Any) -> bool:
    return not isinstance(value, str | bytes) and isinstance(value, Iterable)


def _plain(values: Any) -> list[Any]:
    """A list of Python values; numpy arrays convert in one step."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _kinds(values: Iterable[Any]) -> str:
    return ", ".join(sorted({type(value).__name__ for value in values})) or "nothing"
