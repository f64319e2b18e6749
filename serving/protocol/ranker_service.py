"""The Ranker service: one call in, one ordered list out. Conversion is in `rank_messages`, work in the core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

from grpc.aio import ServicerContext

from kunlun.v1 import ranker_pb2, ranker_pb2_grpc
from serving.core.errors import DeadlineExpired, InvalidField
from serving.core.types import RankRequest, RankResult
from serving.feedback.receipt import ReceiptSigner, ServedList
from serving.protocol.errors import message_of, trailing_details
from serving.protocol.guard import Failed, Guard
from serving.protocol.rank_messages import RankMessages, fill_timings
from serving.protocol.time_left import time_left_s

MAX_STREAM_IN_FLIGHT = 64


class Ranks(Protocol):
    """The part of the core this service calls."""

    async def rank(self, request: RankRequest) -> RankResult:
        """Score and order."""
        ...


class ServedLists(Protocol):
    """The part of the served log this service calls."""

    def samples(self, request_id: str) -> bool:
        """Whether this request is logged."""
        ...

    def add(self, served: ServedList, receipt: bytes, request: RankRequest, result: RankResult) -> None:
        """Log an answered Rank whose result carries its features; must not wait."""
        ...


class RankerService(ranker_pb2_grpc.RankerServicer):
    """Answers `kunlun.v1.Ranker`; with a `served_log`, the Ranks that it samples are logged."""

    def __init__(
        self,
        ranker: Ranks,
        messages: RankMessages,
        signer: ReceiptSigner,
        guard: Guard,
        default_deadline_s: float,
        served_log: ServedLists | None = None,
    ) -> None:
        self._guard, self._served_log = guard, served_log
        self._ranker, self._messages, self._signer = ranker, messages, signer
        self._default_deadline_s = default_deadline_s

    async def Rank(  # noqa: N802  the name is the API's
        self, message: ranker_pb2.RankRequest, context: ServicerContext[ranker_pb2.RankRequest, ranker_pb2.RankResponse]
    ) -> ranker_pb2.RankResponse:
        """Rank the candidates of one request."""
        started, budget_s = time.monotonic(), time_left_s(context)
        return await self._rank(message, started, started + (self._default_deadline_s if budget_s is None else budget_s))

    async def RankStream(  # noqa: N802  the name is the API's
        self,
        messages: AsyncIterator[ranker_pb2.RankStreamRequest],
        context: ServicerContext[ranker_pb2.RankStreamRequest, ranker_pb2.RankStreamResponse],
    ) -> None:
        """Rank what the stream brings. With `MAX_STREAM_IN_FLIGHT` unanswered, no more is read: the caller has to wait."""
        in_flight: set[str] = set()
        slots, writing = asyncio.Semaphore(MAX_STREAM_IN_FLIGHT), asyncio.Lock()

        async def answer(message: ranker_pb2.RankStreamRequest) -> None:
            try:
                reply = await self._stream_reply(message, in_flight, time_left_s(context))
                async with writing:
                    await context.write(reply)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as tasks:  # a caller who leaves cancels this call, and so what is in flight
            async for message in messages:
                await slots.acquire()
                tasks.create_task(answer(message))

    async def _stream_reply(
        self, message: ranker_pb2.RankStreamRequest, in_flight: set[str], stream_left_s: float | None
    ) -> ranker_pb2.RankStreamResponse:
        started, own_id = time.monotonic(), ""

        async def rank() -> ranker_pb2.RankResponse:
            nonlocal own_id
            asked = message.rank.request_id
            if not asked:
                raise InvalidField("rank.request_id", "an id, by which the reply is matched", "none")
            if asked in in_flight:
                raise InvalidField("rank.request_id", "an id that is not in flight on this stream", repr(asked))
            in_flight.add(asked)
            own_id = asked
            budget_s = message.budget_ms / 1000 or self._default_deadline_s
            deadline = started + (budget_s if stream_left_s is None else min(budget_s, stream_left_s))
            try:
                async with asyncio.timeout(deadline - started):
                    return await self._rank(message.rank, started, deadline)
            except TimeoutError as error:
                raise DeadlineExpired(f"budget_ms: {budget_s * 1e3:.0f} ms have passed") from error

        try:
            result = await self._guard.attempt("RankStream", message, rank)
        finally:
            in_flight.discard(own_id)
        if not isinstance(result, Failed):
            return ranker_pb2.RankStreamResponse(request_id=result.request_id, rank=result)
        status = ranker_pb2.RankStatus(
            code=result.code.value[0], message=message_of(result.error), details=trailing_details(result.error)[0][1]
        )
        is_readable = isinstance(message, ranker_pb2.RankStreamRequest)
        return ranker_pb2.RankStreamResponse(request_id=message.rank.request_id if is_readable else "", status=status)

    async def _rank(self, message: ranker_pb2.RankRequest, started: float, deadline: float) -> ranker_pb2.RankResponse:
        request = self._messages.request(message, started, deadline)
        converted = time.monotonic()
        is_logged = self._served_log is not None and self._served_log.samples(request.request_id)
        result = await self._ranker.rank(replace(request, keeps_features=True) if is_logged else request)
        served = self._messages.served(message, request, result)
        receipt = self._signer.sign(served)
        response = self._messages.response(message, request, result, receipt)
        if is_logged and self._served_log is not None:
            self._served_log.add(served, receipt, request, result)
        if message.include_timings:
            fill_timings(response, result, converted - started, time.monotonic() - started)
        return response
