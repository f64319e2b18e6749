"""The Ranker service: one call in, one ordered list out. Conversion is in `rank_messages`, work in the core."""

from __future__ import annotations

import time
from typing import Protocol

from grpc.aio import ServicerContext

from kunlun.v1 import ranker_pb2, ranker_pb2_grpc
from serving.core.types import RankRequest, RankResult
from serving.feedback.receipt import ReceiptSigner
from serving.protocol.rank_messages import RankMessages, fill_timings


class Ranks(Protocol):
    """The part of the core this service calls."""

    async def rank(self, request: RankRequest) -> RankResult:
        """Score and order."""
        ...


class RankerService(ranker_pb2_grpc.RankerServicer):
    """Answers `kunlun.v1.Ranker`."""

    def __init__(self, ranker: Ranks, messages: RankMessages, signer: ReceiptSigner, default_deadline_s: float) -> None:
        self._ranker, self._messages, self._signer = ranker, messages, signer
        self._default_deadline_s = default_deadline_s

    async def Rank(  # noqa: N802  the name is the API's
        self, message: ranker_pb2.RankRequest, context: ServicerContext[ranker_pb2.RankRequest, ranker_pb2.RankResponse]
    ) -> ranker_pb2.RankResponse:
        """Rank the candidates of one request."""
        started, budget_s = time.monotonic(), context.time_remaining()
        deadline = started + (self._default_deadline_s if budget_s is None else budget_s)
        request = self._messages.request(message, started, deadline)
        converted = time.monotonic()
        result = await self._ranker.rank(request)
        receipt = self._signer.sign(self._messages.served(message, request, result))
        response = self._messages.response(message, request, result, receipt)
        if message.include_timings:
            fill_timings(response, result, converted - started, time.monotonic() - started)
        return response
