"""The Python client of a kunlun server. Depends on grpcio and protobuf alone.

One `Client` per process is enough: it is thread-safe and keeps its connections. Every call has a
deadline that covers all its attempts. Calls that the server refused for now (UNAVAILABLE, RESOURCE_EXHAUSTED
with retry advice, or CANCELLED by a server that was stopping) are repeated after the advised pause, with
jitter, while the deadline allows; all calls are safe to repeat (events carry their ids). Calls about one user carry
a header made of its id (`kunlun.routing`), by which a balancer can keep a user's calls on one server.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc

from kunlun.errors import FieldViolation, KunlunError, wire_fields
from kunlun.routing import Metadata, user_metadata
from kunlun.v1 import (
    events_pb2,
    events_pb2_grpc,
    features_pb2,
    features_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    ranker_pb2_grpc,
)
from kunlun.values import (
    Event,
    EventToken,
    Outcome,
    RankQuery,
    RankReply,
    StreamReply,
    Value,
    Values,
    item_ids,
    per_item,
)

T = TypeVar("T")
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.lb_policy_name", "round_robin"),  # spread calls over every address the name resolves to
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _JITTER = 0.05, 2.0, 0.25
_HEALTH_METHOD, _HEALTH_SERVING = "/grpc.health.v1.Health/Check", 1


class Client:
    """Calls a server at `target` (``host:port`` or any gRPC name, such as ``dns:///ranker:50051``).

    `timeout_s` is the deadline of a call unless the call says otherwise; `retries` the number of
    repetitions at most. `credentials` (see `grpc.ssl_channel_credentials`) turns TLS on. `options`
    are gRPC channel arguments laid over `CHANNEL_OPTIONS`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 1.0,
        retries: int = 3,
        credentials: grpc.ChannelCredentials | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = list((dict(CHANNEL_OPTIONS) | dict(options or {})).items())
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=arguments)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=arguments)
        self._timeout_s, self._retries = timeout_s, retries
        self._closed = False
        self._ranker = ranker_pb2_grpc.RankerStub(self._channel)  # type: ignore[no-untyped-call]
        self._events = events_pb2_grpc.EventsStub(self._channel)  # type: ignore[no-untyped-call]
        self._features = features_pb2_grpc.FeaturesStub(self._channel)  # type: ignore[no-untyped-call]
        self._feedback = feedback_pb2_grpc.FeedbackStub(self._channel)  # type: ignore[no-untyped-call]
        self._health: Callable[..., bytes] = self._channel.unary_unary(_HEALTH_METHOD)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls in flight are cancelled."""
        self._closed = True
        self._channel.close()

    def rank(
        self,
        user_id: str,
        items: Sequence[str] | Sequence[int],
        *,
        context: Mapping[str, Values] | None = None,
        user: Mapping[str, Values] | None = None,
        item_features: Mapping[str, Sequence[Values]] | None = None,
        columns: Mapping[str, Sequence[Value]] | None = None,
        top_k: int = 0,
        include_timings: bool = False,
        after: EventToken | str = "",
        request_id: str = "",
        model: str = "",
        version: str = "",
        time_ms: int = 0,
        priority: str = "",
        timeout_s: float | None = None,
    ) -> RankReply:
        """Order `items` for a user; raises `KunlunError`.

        `context` and `user` map feature names to values (user features win over stored ones).
        `item_features` and request `columns` hold one value per item. `top_k` 0 returns all. `after`
        is the token of recorded events that must be seen. `time_ms` replays a past request. Under overload
        `priority` (low, normal, high) says who is degraded and refused first.
        """
        message = RankQuery(
            *(user_id, items, context, user, item_features, columns, top_k),
            *(include_timings, after, request_id, model, version, time_ms),
            priority=priority,
        ).message()
        return RankReply.of(self._call(self._ranker.Rank, message, timeout_s, user_metadata(user_id)))

    def rank_stream(self, queries: Iterable[RankQuery], *, timeout_s: float | None = None) -> Iterator[StreamReply]:
        """Rank many queries over one stream; replies come as they are ready, matched by `request_id`.

        `queries` is read in another thread and may go on for as long as the stream lives; every query needs a
        `request_id`, and its `budget_ms` is its own deadline. A query that fails yields its error and the rest
        goes on; nothing is repeated. `timeout_s` ends the whole stream (default: no limit), as does closing the
        iterator, which cancels what is in flight. Raises `KunlunError` when the stream itself breaks.
        """
        call = self._ranker.RankStream((query.stream_message() for query in queries), timeout=timeout_s)
        try:
            for reply in call:
                yield StreamReply.of(reply)
        except grpc.RpcError as failure:
            raise KunlunError.of(failure) from failure
        finally:
            call.cancel()

    def record_events(self, events: Sequence[Event], *, timeout_s: float | None = None) -> EventToken:
        """Append events to users' histories; returns once they are stored. Raises `KunlunError`."""
        message = events_pb2.RecordEventsRequest(events=[event.message() for event in events])
        users = {event.user_id for event in events}
        about = user_metadata(users.pop()) if len(users) == 1 else ()
        reply: events_pb2.RecordEventsResponse = self._call(self._events.RecordEvents, message, timeout_s, about)
        return EventToken(reply.event_token, reply.stored, reply.duplicates)

    def put_items(
        self,
        items: Sequence[str] | Sequence[int],
        features: Mapping[str, Sequence[Values]],
        *,
        timeout_s: float | None = None,
    ) -> int:
        """Store whole item records, one value of each feature per item; returns how many. Raises `KunlunError`.

        A feature that is left out is missing from now on.
        """
        message = features_pb2.PutItemsRequest(items=item_ids(items), features=per_item(features))
        reply: features_pb2.PutItemsResponse = self._call(self._features.PutItems, message, timeout_s)
        return reply.stored

    def put_users(
        self, user_ids: Sequence[str], features: Mapping[str, Sequence[Values]], *, timeout_s: float | None = None
    ) -> int:
        """The same for users."""
        message = features_pb2.PutUsersRequest(user_ids=user_ids, features=per_item(features))
        reply: features_pb2.PutUsersResponse = self._call(self._features.PutUsers, message, timeout_s)
        return reply.stored

    def forget_user(self, user_id: str, *, timeout_s: float | None = None) -> bool:
        """Delete everything stored of a user (features, histories); False when nothing was. Raises `KunlunError`."""
        message = events_pb2.ForgetUserRequest(user_id=user_id)
        about = user_metadata(user_id)
        reply: events_pb2.ForgetUserResponse = self._call(self._events.ForgetUser, message, timeout_s, about)
        return reply.deleted

    def report_outcomes(self, outcomes: Sequence[Outcome], *, timeout_s: float | None = None) -> int:
        """Report impressions and labels; returns how many outcomes were stored. Raises `KunlunError`."""
        message = feedback_pb2.ReportOutcomesRequest(outcomes=[outcome.message() for outcome in outcomes])
        reply: feedback_pb2.ReportOutcomesResponse = self._call(self._feedback.ReportOutcomes, message, timeout_s)
        return reply.stored

    def health(self, *, timeout_s: float | None = None) -> bool:
        """True when the server answers that it is serving; False when it cannot be reached or is not ready."""
        try:
            reply = self._health(b"", timeout=timeout_s or self._timeout_s)
        except grpc.RpcError:
            return False
        return (1, _HEALTH_SERVING) in wire_fields(reply)

    def _call(self, method: Callable[..., T], message: Any, timeout_s: float | None, metadata: Metadata = ()) -> T:
        deadline = time.monotonic() + (timeout_s or self._timeout_s)
        for attempt in range(self._retries + 1):
            try:
                return method(message, timeout=max(deadline - time.monotonic(), 0.001), metadata=metadata)
            except grpc.RpcError as failure:
                error = KunlunError.of(failure)
                pause_s = _pause_s(error, attempt)
                if pause_s is None or self._closed or attempt == self._retries or time.monotonic() + pause_s >= deadline:
                    raise error from failure
                time.sleep(pause_s)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _pause_s(error: KunlunError, attempt: int) -> float | None:
    """How long to wait before the next attempt; None when repeating cannot help."""
    if error.retry_after_s is not None and error.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        return error.retry_after_s * random.uniform(1, 1 + _JITTER)
    if error.code in ("UNAVAILABLE", "CANCELLED"):  # we cancel nothing: a call that met a stopping server may be dropped so
        return random.uniform(0.5, 1) * float(min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S))
    return None


__all__ = ["Client", "Event", "EventToken", "FieldViolation", "KunlunError", "Outcome", "RankQuery", "RankReply", "StreamReply"]
