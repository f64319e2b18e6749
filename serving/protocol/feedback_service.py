"""The Feedback service: verified outcomes go to the store's stream; answers only after the store has acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kunlun.v1 import feedback_pb2, feedback_pb2_grpc
from serving.protocol.outcome_messages import OutcomeMessages


class OutcomeStream(Protocol):
    """The part of the store this service calls."""

    async def append_outcomes(self, outcomes: Sequence[bytes]) -> None:
        """Append to the outcome stream."""
        ...


class OutcomeObserver(Protocol):
    """What this service reports."""

    def outcomes(self, stored: int) -> None:
        """One acknowledged batch."""
        ...


class FeedbackService(feedback_pb2_grpc.FeedbackServicer):
    """Answers `kunlun.v1.Feedback`."""

    def __init__(self, store: OutcomeStream, messages: OutcomeMessages, observer: OutcomeObserver) -> None:
        self._store, self._messages, self._observer = store, messages, observer

    async def ReportOutcomes(  # noqa: N802  the name is the API's
        self,
        message: feedback_pb2.ReportOutcomesRequest,
        context: Any,
    ) -> feedback_pb2.ReportOutcomesResponse:
        """Store what was shown and what came of it."""
        outcomes = self._messages.outcomes(message)
        await self._store.append_outcomes(outcomes)
        self._observer.outcomes(len(outcomes))
        return feedback_pb2.ReportOutcomesResponse(stored=len(outcomes))
