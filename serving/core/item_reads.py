"""Items that are being read from the store: Ranks that miss the same item ask for it once.

The first Rank that misses an item reads it in its own round trip; those that come meanwhile wait for its answer
beside their own. Owned by the event loop; no locks. What is said to have changed is not shared any longer:
who comes later reads it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.core.host_features import ItemRows


@dataclass(eq=False)
class ItemRead:
    """The distinct `keys` that one Rank reads, and their rows in that order (None: it could not, or has gone)."""

    keys: NDArray[np.int64]
    rows: asyncio.Future[ItemRows | None]


@dataclass(frozen=True)
class Claim:
    """What a Rank reads itself, and what others are reading: for each read the (position asked, position there) pairs."""

    own: ItemRead
    own_positions: NDArray[np.int64]
    others: Mapping[ItemRead, list[tuple[int, int]]]


class ItemReads:
    """Reads in flight by item key."""

    def __init__(self) -> None:
        self._reads: dict[int, tuple[ItemRead, int]] = {}

    def claim(self, keys: NDArray[np.int64]) -> Claim:
        """Share out `keys` [N], which are not cached: those that nobody is reading are the caller's, who must `land` them."""
        own: list[int] = []
        own_positions: list[int] = []
        others: dict[ItemRead, list[tuple[int, int]]] = {}
        rows: asyncio.Future[ItemRows | None] = asyncio.get_running_loop().create_future()
        mine = ItemRead(keys, rows)
        for position, key in enumerate(keys.tolist()):
            read, there = self._reads.get(key, (None, 0))
            if read is None:
                self._reads[key] = mine, len(own)
                own.append(key)
                own_positions.append(position)
            else:  # its own, when a key is asked for twice
                others.setdefault(read, []).append((position, there))
        mine.keys = np.array(own, np.int64)
        return Claim(mine, np.array(own_positions, np.int64), others)

    def land(self, read: ItemRead, rows: ItemRows | None) -> None:
        """The read has ended, with `rows` of its keys or without."""
        for key in read.keys.tolist():
            if self._reads.get(key, (None, 0))[0] is read:
                del self._reads[key]
        read.rows.set_result(rows)

    def forget(self, keys: NDArray[np.int64] | None) -> None:
        """These items (None: all) may have changed since they were asked for."""
        if keys is None:
            self._reads.clear()
            return
        for key in keys.tolist():
            self._reads.pop(key, None)
