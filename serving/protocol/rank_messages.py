"""`kunlun.v1.RankRequest` → `serving.core.types.RankRequest`, and `RankResult` → `RankResponse`.

Called by the Ranker service. Every limit is checked before anything is allocated for the request.
Cost: a handful of numpy calls per request; nothing per candidate but the hashing of string ids.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import numpy as np

from kunlun.v1 import ranker_pb2, types_pb2
from model.hashing import string_key
from model.schema import IdType, Schema
from model.value_expression import ValueExpression
from serving.core.errors import InvalidField, NotFound
from serving.core.types import CandidateBlock, Priority, RankRequest, RankResult
from serving.feedback.receipt import ServedList
from serving.protocol.columns import ColumnReader, item_keys
from serving.protocol.limits import MAX_REQUEST_ID, MAX_USER_ID, check_text, check_time
from serving.protocol.tokens import version_asked

MAX_RECEIPT_ITEMS = 65_535
"""A receipt covers at most this many returned items (its count is 16 bits wide)."""


class RankMessages:
    """Converts for one served model version."""

    def __init__(self, schema: Schema, model: str, version: str) -> None:
        self._schema, self._model, self._version = schema, model, version
        self._candidates = ColumnReader(
            schema, schema.item_features, "an item feature or request column", floats=schema.request_columns
        )
        self._context = ColumnReader(schema, schema.context, "a context feature")
        self._user = ColumnReader(schema, schema.user, "a user feature")
        self._needed = sorted(ValueExpression.parse(schema.value).names.intersection(schema.request_columns))
        self._tasks = [task.name for task in schema.tasks]

    def request(self, message: ranker_pb2.RankRequest, started: float, deadline: float) -> RankRequest:
        """Validate and convert; times are `time.monotonic()`. Raises `InvalidField`, `NotFound` or `FieldError`."""
        schema = self._schema
        self._check_model(message)
        check_text("user_id", message.user_id, MAX_USER_ID)
        if len(message.request_id) > MAX_REQUEST_ID:
            raise InvalidField("request_id", f"at most {MAX_REQUEST_ID} characters", f"{len(message.request_id)}")
        received_ms = check_time("time_ms", message.time_ms, time.time_ns() // 1_000_000)
        keys = item_keys("candidates", message.candidates, schema, schema.max_candidates)
        overrides, columns = self._candidates.overrides("candidate_features", message.candidate_features, len(keys))
        for name in self._needed:
            if name not in columns:
                raise InvalidField(
                    f"candidate_features.{name}", f"a column, which the value expression {schema.value!r} reads", "none"
                )
        user_overrides, _ = self._user.overrides("user_features", message.user_features, 1)
        user_key = string_key(message.user_id, schema.hash)
        return RankRequest(
            request_id=message.request_id or uuid.uuid4().hex,
            user_id=message.user_id,
            user_key=user_key,
            candidates=CandidateBlock(keys, overrides, columns),
            context=self._context.records("context_features", message.context_features),
            received_ms=received_ms,
            deadline=deadline,
            started=started,
            top_k=message.top_k,
            user_overrides=user_overrides,
            min_event_version=version_asked(message.min_event_token, user_key),
            priority=_priority(message.priority),
        )

    def served(self, message: ranker_pb2.RankRequest, request: RankRequest, result: RankResult) -> ServedList:
        """What the receipt of `result` says."""
        order = result.order[:MAX_RECEIPT_ITEMS]
        return ServedList(
            request_id=request.request_id,
            issued_ms=time.time_ns() // 1_000_000,
            model_version=result.version,
            slice_value=self._slice_value(message.context_features),
            rung=int(result.rung),
            item_keys=request.candidates.keys[order],
            predictions=result.probabilities[:MAX_RECEIPT_ITEMS],
            tasks=tuple(self._tasks),
        )

    def response(
        self, message: ranker_pb2.RankRequest, request: RankRequest, result: RankResult, receipt: bytes
    ) -> ranker_pb2.RankResponse:
        """The reply; stage timings are added by the service."""
        order, columns = result.order.tolist(), result.probabilities.T.tolist()
        return ranker_pb2.RankResponse(
            request_id=request.request_id,
            model=result.model,
            version=result.version,
            order=order,
            items=self._items(message.candidates, order),
            scores=[types_pb2.TaskScores(task=task, scores=columns[number]) for number, task in enumerate(self._tasks)],
            values=result.values.tolist(),
            rung=int(result.rung),  # type: ignore[arg-type]
            rung_reason=result.rung_reason,
            newest_event_age_ms=result.newest_event_age_ms,
            history_length=result.history_length,
            user_state_cached=result.user_state_cached,
            unknown_items=result.unknown_items,
            unknown_user=result.unknown_user,
            receipt=receipt,
        )

    def _items(self, candidates: types_pb2.ItemIds, order: Sequence[int]) -> types_pb2.ItemIds:
        if self._schema.item.id_type is IdType.STRING:
            keys = list(candidates.keys)
            return types_pb2.ItemIds(keys=[keys[at] for at in order])
        return types_pb2.ItemIds(ids=np.array(candidates.ids, dtype=np.int64)[order].tolist())

    def _check_model(self, message: ranker_pb2.RankRequest) -> None:
        if message.model not in ("", self._model):
            raise NotFound("model", f"{self._model!r} (or empty)", repr(message.model))
        if message.version not in ("", self._version):
            raise NotFound("version", f"{self._version!r} (or empty) of model {self._model!r}", repr(message.version))

    def _slice_value(self, context: Sequence[types_pb2.FeatureColumn]) -> str:
        """The slice feature's value in this request, as text; empty when it was not sent."""
        for column in context:
            if column.name == self._schema.slice:
                values = getattr(column, column.WhichOneof("values") or "string_values").values
                return ",".join(_as_text(v) for v in values)
        return ""


def _priority(number: int) -> Priority:
    try:
        return Priority(number or Priority.NORMAL)
    except ValueError:
        known = ", ".join(f"{p.name} ({p.value})" for p in Priority)
        raise InvalidField("priority", f"one of {known}", str(number)) from None


def _as_text(value: str | int | float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def fill_timings(response: ranker_pb2.RankResponse, result: RankResult, convert_s: float, total_s: float) -> None:
    """Add the stage timings, in microseconds."""
    times = result.times
    timings = response.timings
    timings.convert_us, timings.total_us = _us(convert_s), _us(total_s)
    timings.store_us, timings.queue_us = _us(times.store_s), _us(times.queue_s)
    timings.encode_us, timings.score_us = _us(times.encode_s), _us(times.score_s)


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
