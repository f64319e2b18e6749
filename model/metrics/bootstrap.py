"""Bootstrap over users: 95 % intervals that respect that one user's impressions are not independent.

A resample draws U users with replacement, so it is a row of counts per user. Every figure that is a
function of sums per user becomes one matrix product [B, U] × [U, K]; AUC is not, and is computed by
weighted ranks over examples that were sorted once. Two predictions that share `resamples` are compared
pairwise (`difference_interval`), which is far sharper than comparing two intervals.

Called by `model.metrics.evaluate` and benchmarks. Deterministic by seed. Cost: B × N additions for AUC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def resamples(users: int, count: int = 300, seed: int = 0) -> NDArray[np.float64]:
    """How often each user was drawn, [count, users]; every row sums to `users`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(users, np.full(users, 1 / users), size=count).astype(np.float64)


def resampled_auc(
    scores: NDArray[np.floating],
    labels: NDArray[np.floating],
    users: NDArray[np.int64],
    weights: NDArray[np.float64],
    example_weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """AUC of every resample, [B]: P(score of a positive > of a negative) + ½ P(equal), examples weighted by their user.

    Scores, labels and users [N]; `weights` [B, U] of users; `example_weights` [N] multiply those of their users.
    """
    order = np.argsort(scores, kind="stable")
    own = np.ones(len(order)) if example_weights is None else example_weights[order]
    sorted_scores, positive, owner = np.asarray(scores)[order], np.asarray(labels)[order] > 0, users[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_scores[1:] != sorted_scores[:-1]]))
    out = np.empty(len(weights))
    step = max(1, _ROWS_AT_ONCE // max(1, len(scores)))
    for begin in range(0, len(weights), step):
        drawn = weights[begin : begin + step][:, owner] * own
        ups = np.add.reduceat(drawn * positive, starts, axis=1)
        downs = np.add.reduceat(drawn * ~positive, starts, axis=1)
        below = np.cumsum(downs, axis=1) - downs / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            out[begin : begin + step] = (ups * below).sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1))
    return out


def interval(value: float, draws: NDArray[np.float64]) -> Interval:
    """Percentile interval of the draws that are defined; NaN when none is."""
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def difference_interval(value: float, draws: NDArray[np.float64], other: float, other_draws: NDArray[np.float64]) -> Interval:
    """Interval of value - other, from draws of the same resamples."""
    return interval(value - other, draws - other_draws)
