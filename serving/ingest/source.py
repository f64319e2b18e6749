"""What a log of events must be able to do to be ingested. Redis Streams can; Kafka would fit: an offset is a position,
a consumer group shares partitions, committing is acknowledging, and a topic of rejects takes what cannot be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """One entry: where it is in the log, and a serialized `kunlun.v1.Event` (None: the entry holds something else)."""

    position: str
    event: bytes | None


class EventSource(Protocol):
    """A log that several replicas read together, each entry by one of them. Every method may raise `SourceUnavailable`."""

    async def read(self, count: int, wait_s: float) -> list[Entry]:
        """Up to `count` entries: first those that this or a vanished reader has read and never acknowledged, then new ones.

        Waits `wait_s` at most. Entries come again until they are acknowledged; after `again`, at once.
        """
        ...

    async def acknowledge(self, entries: Sequence[Entry]) -> None:
        """These need not come again."""
        ...

    async def reject(self, entry: Entry, reason: str) -> None:
        """Set aside an entry that can never be stored, with the reason, and acknowledge it."""
        ...

    def again(self) -> None:
        """What has been read and not acknowledged is read again next: storing it has failed."""
        ...

    async def lag(self) -> int:
        """Entries that have not been acknowledged yet, read or not."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class SourceUnavailable(Exception):
    """The log cannot be reached; nothing is lost."""
