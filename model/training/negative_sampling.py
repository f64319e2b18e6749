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

_STREAM = 20_261_124
"""Apart from the random streams of epochs and steps, which are seeded by (seed, epoch, step)."""


@dataclass(frozen=True)
class NegativeSample:
    """What training sees of its part of a log."""

    kept: NDArray[np.bool_]  # [C] over the whole log
    requests: NDArray[np.int64]  # training requests with a kept item
    shown: NDArray[np.int64]  # [requests] how many of a request's items are kept
    shares: NDArray[np.float64]  # [tasks] share kept of the negatives of the full distribution


def sample_negatives(log: RequestLog, train: NDArray[np.int64], config: TrainConfig) -> NegativeSample:
    """Draw the sample of the training requests; raises `ConfigError` when no negative of a task is left."""
    draws = np.random.default_rng([config.seed, _STREAM]).random(len(log.item_index))
    kept = ~log.negatives() | (draws < config.negative_rate)
    counts = np.diff(np.concatenate([[0], np.cumsum(kept)])[log.offsets])
    rows = log.rows_of(train)
    shares = np.ones(len(log.schema.tasks))
    negative, weights = log.labels[rows] == 0, log.weights()[rows]
    for number, task in enumerate(log.schema.tasks):
        own = rows[negative[:, number]]
        left = int(kept[own].sum())
        if len(own) and not left:
            raise ConfigError(
                f"negative_rate: expected a rate that leaves negatives of every task, found {config.negative_rate}, "
                f"which leaves none of the {len(own):,} of {task.name!r} in the training part"
            )
        if len(own):
            shares[number] = left / weights[negative[:, number]].sum()
    requests = train[counts[train] > 0]
    return NegativeSample(kept, requests, counts[requests], shares)
