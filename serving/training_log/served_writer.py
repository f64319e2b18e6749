"""Writes the served log beside the Ranks: they hand over references, a background task encodes and appends.

Called by the Ranker service on the event loop. A Rank never waits and never fails for it: what waits is bounded in bytes,
and what finds no room, or a store that does not answer, is dropped and counted. Encoding runs in a thread, where the
compression leaves the interpreter to others. Cost on the event loop: a few microseconds per logged Rank, a round trip
per batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import xxhash

from model.schema import Schema
from serving.core.errors import StoreUnavailable
from serving.core.types import RankRequest, RankResult
from serving.feedback.receipt import ServedList
from serving.training_log.served_log import ServedLogFormat, entry_of

STORED, DROPPED, SKIPPED = "stored", "dropped", "skipped"
MAX_BYTES = 32 << 20
BATCH = 64
OVERHEAD_BYTES = 2_000
"""Of what waits, beside its features: keys, predictions, the request and the receipt."""

_LOG = logging.getLogger(__name__)


class ServedStream(Protocol):
    """The part of the store this writer calls."""

    async def append_served(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Append (user id, entry) pairs to the served log."""
        ...


class ServedLogObserver(Protocol):
    """What this writer reports."""

    def served_log(self, outcome: str, count: int) -> None:
        """`count` sampled Ranks were `stored`, `dropped` (no room, no store) or `skipped` (not intact)."""
        ...


@dataclass(frozen=True)
class _Waiting:
    served: ServedList
    receipt: bytes
    request: RankRequest
    result: RankResult
    nbytes: int


class ServedLog:
    """Owns what waits to be written. `rate`: share of requests that are logged."""

    def __init__(
        self, stream: ServedStream, schema: Schema, rate: float, observer: ServedLogObserver, max_bytes: int = MAX_BYTES
    ) -> None:
        self._stream, self._format, self._observer = stream, ServedLogFormat(schema), observer
        self._below, self._max_bytes = round(rate * 2**64), max_bytes
        self._waiting: deque[_Waiting] = deque()
        self._bytes = self._writing = 0
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()

    def samples(self, request_id: str) -> bool:
        """Whether this request is logged: a function of its id alone, so that repeated calls agree."""
        return xxhash.xxh64_intdigest(request_id.encode()) < self._below

    def add(self, served: ServedList, receipt: bytes, request: RankRequest, result: RankResult) -> None:
        """Log an answered Rank whose result carries its features, if there is room."""
        features = result.features
        if features is None or not features.is_intact:
            self._observer.served_log(SKIPPED, 1)
            return
        nbytes = features.nbytes + len(receipt) + OVERHEAD_BYTES
        if self._bytes + nbytes > self._max_bytes:
            self._observer.served_log(DROPPED, 1)
            return
        self._bytes += nbytes
        self._waiting.append(_Waiting(served, receipt, request, result, nbytes))
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                self._writing = len(batch)
                await self._write(batch)
                self._writing = 0
                self._bytes -= sum(waiting.nbytes for waiting in batch)
            self._idle.set()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is written, or drop what is left after `timeout_s`; nothing may be added any more."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            left = self._writing + len(self._waiting)
            self._waiting.clear()
            self._observer.served_log(DROPPED, left)
            _LOG.warning("served log: %d entries dropped, which the store did not take within %.1f s", left, timeout_s)

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        entries = await asyncio.to_thread(self._encode, batch)
        try:
            await self._stream.append_served(entries)
        except StoreUnavailable:
            self._observer.served_log(DROPPED, len(batch))
        else:
            self._observer.served_log(STORED, len(batch))

    def _encode(self, batch: Sequence[_Waiting]) -> list[tuple[str, bytes]]:
        return [(w.request.user_id, self._format.encode(entry_of(w.served, w.receipt, w.request, w.result))) for w in batch]
