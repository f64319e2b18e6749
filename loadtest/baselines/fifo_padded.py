"""Request-count batching as general model servers do it: first in, first out, padded to the longest request.

Whenever the engine is free, the oldest requests, up to `most_requests`, become one batch [R × C_max];
every request is padded to the candidate count of the largest one. Both counts are rounded up to buckets,
and the batch is cut short where their product would exceed twice `most_candidates`, so that every shape
was warmed. Nothing waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.signature import PROBABILITIES, SCORE_CANDIDATES
from serving.core.host_features import HostFeatures, Rows, ScoreInputs, stack_requests
from serving.core.shapes import eighth_octaves, powers_of_two, round_up
from serving.core.slots import EngineSlot
from serving.engines.base import Engine, Session

Request = tuple[ScoreInputs, Rows, int, "asyncio.Future[NDArray[np.float32]]"]
Batch = list[Request]


class FifoPadded:
    """One engine slot behind a first-in-first-out queue."""

    def __init__(
        self, engine: Engine, host: HostFeatures, cpu: int | None, most_requests: int = 8, most_candidates: int = 1024
    ) -> None:
        self._engine, self._host, self._cpu = engine, host, cpu
        self._requests, self._candidates = powers_of_two(most_requests), eighth_octaves(most_candidates)
        self._most_rows = 2 * most_candidates
        self._queue: deque[Request] = deque()
        self._busy = False

    async def start(self) -> None:
        """Open the slot and warm every batch shape."""
        loop = asyncio.get_running_loop()
        self._slot: EngineSlot[Batch, NDArray[Any]] = EngineSlot(self._engine, loop, self._run, self._done, 0, self._cpu)
        await self._slot.start(self._warm)

    async def close(self) -> None:
        """End the slot's thread."""
        await self._slot.close()

    def score(self, inputs: ScoreInputs, state: Rows, candidates: int) -> asyncio.Future[NDArray[np.float32]]:
        """Queue one request; its probabilities [C, tasks]. Raises `ValueError` for more than `most_candidates`."""
        if candidates > self._candidates[-1]:
            raise ValueError(f"candidates: expected at most {self._candidates[-1]}, found {candidates}; raise most_candidates")
        future: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._queue.append((inputs, state, candidates, future))
        self._dispatch()
        return future

    def _dispatch(self) -> None:
        if self._busy or not self._queue:
            return
        batch: Batch = []
        longest = 0
        while self._queue and len(batch) < self._requests[-1]:
            longest = max(longest, self._queue[0][2])
            rows = round_up(self._requests, len(batch) + 1) * round_up(self._candidates, longest)
            if batch and rows > self._most_rows:
                break
            batch.append(self._queue.popleft())
        self._busy = True
        self._slot.submit(batch)

    def _run(self, session: Session, batch: Batch) -> NDArray[Any]:
        requests = round_up(self._requests, len(batch))
        longest = round_up(self._candidates, max(candidates for _, _, candidates, _ in batch))
        items = [{name: _padded(rows, longest) for name, rows in inputs.items.items()} for inputs, _, _, _ in batch]
        stacked = stack_requests(
            [state for _, state, _, _ in batch], [i.context for i, _, _, _ in batch], items, requests, requests * longest
        )
        return session.run(SCORE_CANDIDATES, stacked)[PROBABILITIES].reshape(requests, longest, -1)

    def _done(self, slot: EngineSlot[Batch, NDArray[Any]], batch: Batch, outcome: NDArray[Any] | Exception) -> None:
        self._busy = False
        self._dispatch()
        for at, (_, _, candidates, future) in enumerate(batch):
            if future.done():  # the caller has left
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome[at, :candidates])

    def _warm(self, session: Session) -> None:
        for requests in self._requests:
            for longest in self._candidates:
                if requests * longest <= self._most_rows or requests == 1:
                    size = {"R": requests, "C": requests * longest}
                    session.run(SCORE_CANDIDATES, self._host.zeros(self._host.score_signature, size))


def _padded(rows: NDArray[Any], longest: int) -> NDArray[Any]:
    out = np.zeros((longest, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out
