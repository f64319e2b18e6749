"""The fleet's feedback as any replica reads it from the store: sums so far, and windows of minutes.

*Provisional* is what has been reported, revised whenever a label comes late; *matured* are minutes for whose lists no
outcome can come any more. Windows are by the minute in which lists were served: the last ones, and the last that matured.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from serving.core.errors import StoreUnavailable
from serving.feedback.ledger import ALL_SLICES, MINUTE_MS
from serving.feedback.sums import Kind, Sums, add, decode_sums
from serving.store.feedback_state import MATURED, REPORTED, FeedbackState, bucket_hash
from serving.store.redis_store import RedisStore

_LOG = logging.getLogger(__name__)
REFRESH_S = 2.0
_AT_ONCE = 20


class Maturity(StrEnum):
    """Whether more outcomes may come."""

    PROVISIONAL = "provisional"
    MATURED = "matured"


@dataclass(frozen=True)
class Figures:
    """`totals` since ever and `windows`, with slices added up to `ALL_SLICES`; how long the first uncounted outcome waits."""

    totals: dict[Maturity, Sums] = field(default_factory=lambda: {maturity: {} for maturity in Maturity})
    windows: dict[Maturity, Sums] = field(default_factory=lambda: {maturity: {} for maturity in Maturity})
    waiting_s: float = 0.0


class FigureReader:
    """Reads the figures every `REFRESH_S` while `run` runs; `window_ms`: length of the windows."""

    def __init__(self, store: RedisStore, window_ms: int, clock: Callable[[], Awaitable[int]] | None = None) -> None:
        self._state, self._window = FeedbackState(store, 0.0), window_ms // MINUTE_MS
        self._clock = clock or self._state.now_ms
        self.figures: Figures | None = None
        """None until they have been read: nobody must see a counter at 0 that is not."""

    async def run(self) -> None:
        """Read until cancelled; while the store is away the figures stay as they are."""
        is_away = False
        while True:
            try:
                self.figures, is_away = await self.read(), False
            except Exception as error:
                if not is_away:
                    _LOG.warning("online figures: %s", error, exc_info=not isinstance(error, StoreUnavailable))
                is_away = True
            await asyncio.sleep(REFRESH_S)

    async def read(self) -> Figures:
        """The figures now. Raises `StoreUnavailable`, `ValueError` for a state that is not ours."""
        place = await self._state.place()
        reported, matured = map(decode_sums, await self._state.read([REPORTED, MATURED]))
        minute = await self._clock() // MINUTE_MS
        windows = {
            Maturity.PROVISIONAL: await self._sum(minute - self._window + 1, minute + self._window),
            Maturity.MATURED: await self._sum(place.first_open - self._window, place.first_open - 1),
        }
        totals = {Maturity.PROVISIONAL: with_all_slices(reported), Maturity.MATURED: with_all_slices(matured)}
        return Figures(totals, windows, await self._state.waiting_ms(place) / 1000)

    async def _sum(self, first: int, last: int) -> Sums:
        total: Sums = {}
        minutes = await self._state.minutes(first, last)
        for start in range(0, len(minutes), _AT_ONCE):
            for found in await self._state.read([bucket_hash(minute) for minute in minutes[start : start + _AT_ONCE]]):
                add(total, decode_sums(found))
            await asyncio.sleep(0)  # Ranks share this loop
        return with_all_slices(total)


def with_all_slices(sums: Sums) -> Sums:
    """`sums`, and of every task and version the sum over its slices."""
    whole = dict(sums)
    for key, vector in sums.items():
        if key.kind is Kind.NE:
            add(whole, {key._replace(detail=ALL_SLICES): vector})
    return whole
