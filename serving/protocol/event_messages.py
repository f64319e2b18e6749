"""`kunlun.v1.Event` → `UserEvent`, and the acknowledgement back. Called by the Events service.

A full batch takes tens of milliseconds to convert, on the event loop that all Ranks share: it is
converted in slices, and whatever waits runs between two of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from kunlun.v1 import events_pb2, types_pb2
from model.records import ITEM, TIME_MS, Records, event_dtype, missing_records
from model.schema import EventType, Schema
from serving.core.errors import InvalidField
from serving.core.types import RecordedEvents, UserEvent
from serving.protocol.columns import ColumnReader, item_keys
from serving.protocol.limits import MAX_EVENT_ID, MAX_EVENTS, MAX_USER_ID, check_text, check_time, unknown
from serving.protocol.tokens import event_token

SLICE = 20
"""Events converted at a time: about a millisecond."""


class EventMessages:
    """Converts events of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._types: Mapping[str, _EventReader] = {e.name: _EventReader(schema, e) for e in schema.events}

    async def events(self, message: events_pb2.RecordEventsRequest) -> list[UserEvent]:
        """Validate and convert a batch; raises `InvalidField` or `FieldError` naming the event's position."""
        if not 0 < len(message.events) <= MAX_EVENTS:
            raise InvalidField("events", f"1 to {MAX_EVENTS} events per call", f"{len(message.events)}")
        now_ms = time.time_ns() // 1_000_000
        events: list[UserEvent] = []
        for at, event in enumerate(message.events):
            if at and at % SLICE == 0:
                await asyncio.sleep(0)
            events.append(self.event(f"events[{at}]", event, now_ms))
        return events

    def event(self, field: str, event: events_pb2.Event, now_ms: int) -> UserEvent:
        """Validate and convert one event, called `field` in errors; raises `InvalidField` or `FieldError`."""
        check_text(f"{field}.event_id", event.event_id, MAX_EVENT_ID)
        check_text(f"{field}.user_id", event.user_id, MAX_USER_ID)
        if event.type not in self._types:
            raise unknown(f"{field}.type", "a declared event type", event.type, self._types)
        time_ms = check_time(f"{field}.time_ms", event.time_ms, now_ms)
        key = int(item_keys(f"{field}.item", event.item, self._schema, 1)[0])
        record = self._types[event.type].record(f"{field}.attributes", event.attributes, key, time_ms)
        return UserEvent(event.event_id, event.user_id, event.type, record)

    def response(self, recorded: RecordedEvents) -> events_pb2.RecordEventsResponse:
        """The acknowledgement."""
        return events_pb2.RecordEventsResponse(
            stored=recorded.stored,
            duplicates=recorded.duplicates,
            event_token=event_token(recorded.versions, self._schema.hash),
        )


class _EventReader:
    """Builds records of one event type."""

    def __init__(self, schema: Schema, event: EventType) -> None:
        self._dtype = event_dtype(event)
        self._attributes = ColumnReader(schema, event.attributes, f"an attribute of event type {event.name!r}")

    def record(self, field: str, columns: Sequence[types_pb2.FeatureColumn], key: int, time_ms: int) -> Records:
        record = missing_records(self._dtype, 1)
        record[ITEM], record[TIME_MS] = key, time_ms
        if columns:
            attributes = self._attributes.records(field, columns)
            for name in self._attributes.dtype.names or ():
                record[name] = attributes[name]
        return record
