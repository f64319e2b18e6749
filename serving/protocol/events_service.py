"""The Events service: answers only after the store has acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kunlun.v1 import events_pb2, events_pb2_grpc
from serving.core.types import RecordedEvents, UserEvent
from serving.protocol.event_messages import EventMessages
from serving.protocol.limits import MAX_USER_ID, check_text


class RecordsEvents(Protocol):
    """The part of the core this service calls."""

    async def forget_user(self, user_id: str) -> bool:
        """Delete everything of a user."""
        ...

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        """Store events and refresh the user states they change."""
        ...


class EventObserver(Protocol):
    """What this service reports."""

    def events(self, stored: int, duplicates: int) -> None:
        """One acknowledged batch."""
        ...


class EventsService(events_pb2_grpc.EventsServicer):
    """Answers `kunlun.v1.Events`."""

    def __init__(self, core: RecordsEvents, messages: EventMessages, observer: EventObserver) -> None:
        self._core, self._messages, self._observer = core, messages, observer

    async def RecordEvents(  # noqa: N802  the name is the API's
        self,
        message: events_pb2.RecordEventsRequest,
        context: Any,
    ) -> events_pb2.RecordEventsResponse:
        """Append events to users' histories."""
        recorded = await self._core.record_events(await self._messages.events(message))
        self._observer.events(recorded.stored, recorded.duplicates)
        return self._messages.response(recorded)

    async def ForgetUser(  # noqa: N802  the name is the API's
        self,
        message: events_pb2.ForgetUserRequest,
        context: Any,
    ) -> events_pb2.ForgetUserResponse:
        """Delete everything stored of a user."""
        check_text("user_id", message.user_id, MAX_USER_ID)
        return events_pb2.ForgetUserResponse(deleted=await self._core.forget_user(message.user_id))
