"""Which requests form which batch: a function of seed and epoch alone, so that any step of any epoch can be found again.

Requests are shuffled in windows: the training part in time order is cut into blocks, the blocks are shuffled, and the requests
of `shuffle_requests / block` blocks at a time are shuffled among each other. A log of fewer requests than one window is
shuffled as a whole. A window bounds what is read from disk at random, and with it the memory of a streamed log.

With `batch_work`, batches have about equal work, in history events and shown items, instead of equal numbers of requests. In a
window the shuffled requests are sorted by history length, some batches' worth at a time (`sort_batches`), so that a
batch is padded little; then the batches themselves are shuffled. Every epoch has the same number of them. Such batches hold
unequal numbers of examples, fewer where histories are long; so that all weigh the same over an epoch, the loss divides by the
plan's mean number per batch (`examples_per_batch`), not by the batch's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model.training.config import TrainConfig

Requests = NDArray[np.int64]

BLOCK_REQUESTS = 4096
"""Requests next to each other in time that a window takes together."""


def evaluations(batches: int, wanted: int, epoch: int) -> frozenset[int]:
    """After which of its batches, counted from 1, an epoch is evaluated: `wanted` of them (at most all), the last among them.

    The others are multiples of one number of steps over all epochs, thinned evenly where there are more than are wanted.
    """
    wanted, every = min(wanted, batches), max(1, batches // wanted)
    spaced = [n for n in range(1, batches) if (epoch * batches + n) % every == 0 and batches - n >= every // 2]
    others = wanted - 1
    return frozenset([*(spaced[(2 * k + 1) * len(spaced) // (2 * others)] for k in range(others)), batches])


class BatchPlan:
    """Batches of the training requests [N] (ascending), with history events and shown items [N] of each for `work`."""

    def __init__(
        self, requests: Requests, config: TrainConfig, events: Requests | None = None, shown: Requests | None = None
    ) -> None:
        self.requests, self.config = requests, config
        self.events, self.work = events, None
        if config.batch_work is not None:
            if events is None or shown is None:
                raise ValueError("batches by work: events and shown items of every request are needed")
            self.work = events + shown
            wanted = math.ceil(self.work.sum() / config.batch_work)
        else:
            wanted = math.ceil(len(requests) / config.batch_requests)
        self.batches = min(max(1, wanted), len(requests))

    def examples_per_batch(self, examples: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """What a batch's sums over examples are to be divided by, of `examples` [tasks] per epoch; None: by its own number."""
        return None if self.work is None else np.where(examples > 0, examples / self.batches, 1.0)

    def epoch(self, number: int) -> Iterator[Requests]:
        """The batches of an epoch, in order: `batches` arrays of request numbers, together every request once."""
        rng = np.random.default_rng([self.config.seed, number])
        order = self._shuffled(rng)
        if self.work is None:
            for start in range(0, len(order), self.config.batch_requests):
                yield self.requests[order[start : start + self.config.batch_requests]]
            return
        assert self.events is not None
        per_sort = max(1, round(self.config.sort_batches * len(order) / self.batches))
        for turn, start in enumerate(range(0, len(order), per_sort)):
            part = order[start : start + per_sort]
            # Up and down in turns, so that a batch across two parts holds requests of like length, too.
            part = part[np.argsort(self.events[part] * (-1) ** (turn % 2), kind="stable")]
            order[start : start + per_sort] = part
        bounds = self._bounds(self.work[order])
        group = max(1, round(self.batches * self.config.shuffle_requests / len(order)))
        for first in range(0, self.batches, group):
            for batch in first + rng.permutation(min(group, self.batches - first)):
                yield self.requests[order[bounds[batch] : bounds[batch + 1]]]

    def _shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Positions [N] of the requests in an order whose windows are read together."""
        count, window, block = len(self.requests), self.config.shuffle_requests, BLOCK_REQUESTS
        if count <= window:
            return rng.permutation(count)
        blocks = rng.permutation(math.ceil(count / block))
        per_window, order = max(1, window // block), []
        for start in range(0, len(blocks), per_window):
            spans = [np.arange(b * block, min((b + 1) * block, count)) for b in blocks[start : start + per_window].tolist()]
            order.append(rng.permutation(np.concatenate(spans)))
        return np.concatenate(order)

    def _bounds(self, work: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cuts [batches + 1] of requests in order into `batches` parts of about equal work, none of them empty."""
        total = np.cumsum(work)
        cuts = np.searchsorted(total, total[-1] * np.arange(1, self.batches) / self.batches)
        steps = np.arange(1, self.batches)
        cuts = np.maximum.accumulate(np.maximum(cuts, steps) - steps) + steps  # each batch at least one request
        cuts = np.minimum(cuts, len(work) - self.batches + steps)
        return np.concatenate([[0], cuts, [len(work)]]).astype(np.int64)
