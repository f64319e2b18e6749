"""The store interface: user features, histories, item features, and the outcome stream.

Implemented once for every Redis-compatible server (`serving.store.redis_store`); the embedded
default starts a real Valkey as a child process and uses the same implementation. The core calls
only this interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.records import Records
from serving.core.types import RecordedEvents, UserEvent


@dataclass(frozen=True)
class RankInputs:
    """Everything one Rank reads from the store, in one round trip.

    `histories`: per event type the newest `read_window(cap)` records in arrival order (possibly
    empty). `history_version` grows with every stored event of the user (0: no events).
    `user` is None when the user has no stored features, or they were not asked for. `items`/`items_found`: feature records of
    the asked keys [N] and whether each was stored.
    """

    user: Records | None  # [1]
    histories: Mapping[str, Records]
    history_version: int
    items: Records
    items_found: NDArray[np.bool_]


class FeatureStore(Protocol):
    """What the server needs of a store. Every method may raise `StoreUnavailable`. `public_url`: without credentials."""

    public_url: str

    async def read_rank_inputs(
        self, user_id: str, item_keys: NDArray[np.int64], timeout_s: float, *, with_user: bool = True
    ) -> RankInputs:
        """One pipelined round trip: user features, all histories, the features of `item_keys` (may be empty)."""
        ...

    async def read_items(self, keys: NDArray[np.int64], timeout_s: float) -> tuple[Records, NDArray[np.bool_]]:
        """Feature records of `keys` [N], and whether each was stored."""
        ...

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        """Append atomically per user, idempotent by event id inside the window; returns once acknowledged."""
        ...

    async def put_items(self, keys: NDArray[np.int64], records: Records) -> None:
        """Store item feature records."""
        ...

    async def put_users(self, user_ids: Sequence[str], records: Records) -> None:
        """Store user feature records."""
        ...

    async def delete_user(self, user_id: str) -> bool:
        """Delete all that is stored of a user, of every record layout ever used; False when there was nothing."""
        ...

    async def append_outcomes(self, outcomes: Sequence[bytes]) -> None:
        """Append encoded outcomes to the outcome stream; returns once acknowledged."""
        ...

    async def read_outcomes(self, after: str, count: int, block_ms: int) -> list[tuple[str, bytes]]:
        """Up to `count` entries after stream position `after` ("0": from the start), waiting at most `block_ms`.

        An entry that is no outcome is empty.
        """
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` unless the store answers."""
        ...

    async def close(self) -> None:
        """Release connections (and the child process of the embedded store)."""
        ...
