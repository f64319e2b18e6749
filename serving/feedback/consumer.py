"""Reads the outcome stream from the store and feeds online NE.

One task per replica; every replica reads the whole stream, so each exports the same fleet-wide sums.
On start it reads from the beginning, which rebuilds the sums after a restart as far as the stream
reaches (it is bounded by length). A store that is away is waited for with growing pauses; nothing is skipped.
"""

from __future__ import annotations

import asyncio
import logging

from serving.core.errors import StoreUnavailable
from serving.feedback.online_ne import OnlineNE
from serving.feedback.outcome import decode_outcome
from serving.store.base import FeatureStore

_LOG = logging.getLogger(__name__)
_BATCH = 512
_BLOCK_MS = 500
_YIELD_EVERY = 8
_MAX_PAUSE_S = 5.0


class OutcomeConsumer:
    """Owns the position in the stream. `applied` and `unreadable` count entries."""

    def __init__(self, store: FeatureStore, online_ne: OnlineNE) -> None:
        self._store, self._online_ne = store, online_ne
        self._position = "0"
        self.applied = self.unreadable = 0

    async def run(self) -> None:
        """Consume until cancelled."""
        pause_s = 0.05
        while True:
            try:
                entries = await self._store.read_outcomes(self._position, _BATCH, _BLOCK_MS)
                pause_s = 0.05
            except StoreUnavailable as error:
                _LOG.warning("outcome stream: %s; trying again in %.2f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
                continue
            for number, (position, data) in enumerate(entries, start=1):
                self._apply(data)
                self._position = position
                if number % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)  # Ranks share this loop
            await asyncio.sleep(0)

    def _apply(self, data: bytes) -> None:
        try:
            self._online_ne.apply(decode_outcome(data))
            self.applied += 1
        except ValueError as error:
            self.unreadable += 1
            _LOG.warning("%s", error)
