"""The loop that stores the events of a log: at least once, with the effect of once.

Read, validate, store through the core (so that user states are encoded on write as after the RPC),
acknowledge. The next batch is read when the last one is stored, so a slow store holds the reader back and
the log keeps the rest. After a fault, or a crash between storing and acknowledging, entries come again; their
event ids make that harmless inside the store's deduplication window. What can never be stored is set aside
with the reason and does not stop the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from kunlun.v1 import events_pb2
from model.records import FieldError
from serving.core.errors import InvalidField, StoreUnavailable, Unready
from serving.core.types import RecordedEvents, UserEvent
from serving.ingest.source import Entry, EventSource, SourceUnavailable
from serving.protocol.event_messages import EventMessages

BATCH, WAIT_S, PAUSE_S, LAG_EVERY_S = 500, 1.0, 0.5, 1.0
_LOG = logging.getLogger(__name__)


class RecordsEvents(Protocol):
    """The part of the core that ingestion calls."""

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        """Store events; returns once acknowledged."""
        ...


class IngestObserver(Protocol):
    """What ingestion reports."""

    def events(self, stored: int, duplicates: int) -> None:
        """One acknowledged batch."""
        ...

    def rejected_entries(self, count: int) -> None:
        """Entries that were set aside."""
        ...

    def ingest_lag(self, entries: int) -> None:
        """Entries of the log that are not stored yet."""
        ...


class Ingestion:
    """Runs one source into one core."""

    def __init__(self, source: EventSource, messages: EventMessages, core: RecordsEvents, observer: IngestObserver) -> None:
        self._source, self._messages, self._core, self._observer = source, messages, core, observer

    async def run(self) -> None:
        """Ingest for ever."""
        next_lag, was_down = 0.0, False
        try:
            while True:
                try:
                    await self.step()
                    if time.monotonic() >= next_lag:
                        self._observer.ingest_lag(await self._source.lag())
                        next_lag = time.monotonic() + LAG_EVERY_S
                    was_down = False
                except (SourceUnavailable, StoreUnavailable, Unready) as error:
                    if not was_down:
                        _LOG.warning("ingestion waits: %s", error)
                    was_down = True
                    self._source.again()
                    await asyncio.sleep(PAUSE_S)
        finally:
            with contextlib.suppress(Exception):
                await self._source.close()

    async def step(self) -> int:
        """One batch; returns how many entries it had. What fails is read again by the next step."""
        entries = await self._source.read(BATCH, WAIT_S)
        events: list[UserEvent] = []
        bad: list[tuple[Entry, str]] = []
        now_ms = time.time_ns() // 1_000_000
        for entry in entries:
            try:
                events.append(self._event(entry, now_ms))
            except (DecodeError, InvalidField, FieldError) as error:
                bad.append((entry, str(error)))
        if events:
            recorded = await self._core.record_events(events)
            self._observer.events(recorded.stored, recorded.duplicates)
        refused = {entry.position for entry, _ in bad}
        await self._source.acknowledge([entry for entry in entries if entry.position not in refused])
        for entry, reason in bad:
            await self._source.reject(entry, reason)
        self._observer.rejected_entries(len(bad))
        return len(entries)

    def _event(self, entry: Entry, now_ms: int) -> UserEvent:
        if entry.event is None:
            raise InvalidField("e", "a serialized kunlun.v1.Event", "no such field")
        return self._messages.event("event", events_pb2.Event.FromString(entry.event), now_ms)
