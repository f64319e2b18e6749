"""How often items were shown and were positive: what rates per item are made of (popularity prior, affinities)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.data.request_log import RequestLog


def label_counts(log: RequestLog, requests: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Known labels and positives of every item in the given requests, [I, tasks] each, of the full distribution.

    Every shown item counts, also one that training samples away; one of a down-sampled log counts by its weight.
    """
    shown = np.zeros((len(log.item_keys), len(log.schema.tasks)))
    positive = np.zeros_like(shown)
    for part in log.blocks(requests):
        rows = log.rows_of(part)
        labels, item = log.labels[rows], log.item_index[rows]
        np.add.at(shown, item, ~np.isnan(labels) * log.weights(rows)[:, None])
        np.add.at(positive, item, np.nan_to_num(labels))
    return shown, positive
