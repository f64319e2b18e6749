"""Down-sampling of negatives in training (He et al. 2014, section 6.3): which shown items are kept, and what it costs a task.

Shown items whose labels are all known and 0 are kept with probability `negative_rate`; every other one is kept. Only the
training part is sampled: held-out requests stay as the log has them, where an all-zero item of a log that was itself
sampled at rate r counts 1 / r times (`RequestLog.weights`). So every figure is one of the full distribution.

A model trained on the sample is too high by -ln(share of the negatives that was kept). With several tasks, items that
are negative for one may be kept as another's positives, hence a share per task: kept negatives over original ones,
those of a sampled log counted by their weights. A constant offset is exact where items of a task are kept
independently of what the model sees, and an average otherwise; the Platt fit behind it, on the full distribution, takes
up the rest (`model.training.calibration`).

The sample is a function of seed and log alone, so it is the same in every epoch, order and resumed run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.training.config import TrainConfig

DRAWN_ROWS = 1 << 20
_STREAM = 20_261_124
"""Apart from the random streams of epochs and steps, which are seeded by (seed, epoch, step)."""


@dataclass(frozen=True)
class NegativeSample:
    """What training sees of its part of a log."""

    kept: NDArray[np.bool_] | None  # [C] over the whole log; None: all
    requests: NDArray[np.int64]  # training requests with a kept item
    shown: NDArray[np.int64]  # [requests] how many of a request's items are kept
    shares: NDArray[np.float64]  # [tasks] share kept of the negatives of the full distribution
    known: NDArray[np.int64]  # [tasks] kept items whose label is known


def sample_negatives(log: RequestLog, train: NDArray[np.int64], config: TrainConfig) -> NegativeSample:
    """Draw the sample of the training requests; raises `ConfigError` when no negative of a task is left."""
    kept = _draw(log, config) if config.negative_rate < 1 else None
    counts = np.empty(len(train), np.int64)
    left, negatives, whole = (np.zeros(len(log.schema.tasks)) for _ in range(3))
    known = np.zeros(len(log.schema.tasks), np.int64)
    start = 0
    for requests in log.blocks(train):
        rows = log.rows_of(requests)
        sizes = log.offsets[requests + 1] - log.offsets[requests]
        is_kept = np.ones(len(rows), bool) if kept is None else kept[rows]
        owner = np.repeat(np.arange(len(requests)), sizes)
        counts[start : start + len(requests)] = np.bincount(owner, is_kept, len(requests))
        start += len(requests)
        labels, weights = log.labels[rows], log.weights(rows)
        negative = labels == 0
        known += (~np.isnan(labels) & is_kept[:, None]).sum(axis=0)
        left += (negative & is_kept[:, None]).sum(axis=0)
        negatives += negative.sum(axis=0)
        whole += (negative * weights[:, None]).sum(axis=0)
    for task, own, remaining in zip(log.schema.tasks, negatives, left, strict=True):
        if own and not remaining:
            raise ConfigError(
                f"negative_rate: expected a rate that leaves negatives of every task, found {config.negative_rate}, "
                f"which leaves none of the {int(own):,} of {task.name!r} in the training part"
            )
    shares = np.divide(left, whole, out=np.ones_like(left), where=whole > 0)
    return NegativeSample(kept, train[counts > 0], counts[counts > 0], shares, known)


def _draw(log: RequestLog, config: TrainConfig) -> NDArray[np.bool_]:
    """Which shown items are kept; one byte for each, and the same in whatever blocks they are drawn."""
    rng, kept = np.random.default_rng([config.seed, _STREAM]), np.empty(len(log.item_index), bool)
    for start in range(0, len(kept), DRAWN_ROWS):
        block = slice(start, min(start + DRAWN_ROWS, len(kept)))
        draws = rng.random(block.stop - block.start)
        kept[block] = (draws < config.negative_rate) | ~np.all(log.labels[block] == 0, axis=1)
    return kept
