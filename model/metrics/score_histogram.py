"""A bounded histogram of scores: what AUC and drift are computed from when scores themselves cannot be kept.

Bins are equally wide in log-odds, since click probabilities crowd near 0. Counts are additive, so minutes, slices and
replicas are merged by addition. Torch-free.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from model.metrics.normalized_entropy import clipped

LOG_ODDS_LIMIT = 12.0
BINS = 192
"""Of width 1/8 between probabilities of 6e-6 and 1 - 6e-6; the outermost bins also hold what is beyond."""

Counts = NDArray[np.integer] | NDArray[np.floating]
_LEAST_SHARE = 0.05
_SMOOTHING = 1e-4


def score_bins(predictions: NDArray[np.floating]) -> NDArray[np.int64]:
    """Bin of each prediction [N]: 0 to `BINS` - 1, rising with the prediction."""
    p = clipped(predictions)
    log_odds = np.log(p) - np.log1p(-p)
    scaled = (log_odds + LOG_ODDS_LIMIT) * (BINS / (2 * LOG_ODDS_LIMIT))
    return np.clip(scaled, 0, BINS - 1).astype(np.int64)


def score_histogram(predictions: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> NDArray[np.int64]:
    """Counts [BINS] of predictions [N]; `weights` [N] where they stand for several, then sums rounded to whole counts."""
    return np.rint(np.bincount(score_bins(predictions), weights, minlength=BINS)).astype(np.int64)


def histogram_auc(impressions: Counts, positives: Counts) -> float:
    """AUC from counts [BINS] of all impressions and of the positives among them; a pair within a bin counts one half.

    NaN while there are no positives or no negatives.
    """
    positive = np.asarray(positives, np.float64)
    negative = np.asarray(impressions, np.float64) - positive
    pairs = positive.sum() * negative.sum()
    if not pairs > 0:
        return math.nan
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / pairs)


def population_stability_index(reference: Counts, observed: Counts) -> float:
    """PSI = Σ (o - r) · ln(o / r) over shares of both histograms [BINS]; NaN while either is empty.

    Neighbouring bins are first joined until each holds 5 % of the reference. The usual reading: below 0.1 stable,
    above 0.25 shifted.
    """
    r, o = np.asarray(reference, np.float64), np.asarray(observed, np.float64)
    if not r.sum() > 0 or not o.sum() > 0:
        return math.nan
    r, o = r / r.sum(), o / o.sum()
    groups = round(1 / _LEAST_SHARE)
    group = np.minimum(((np.cumsum(r) - r) * groups).astype(np.int64), groups - 1)
    members = group == np.arange(groups)[:, None]
    return _psi(members @ r, members @ o)


def rate_stability_index(reference: float, positives: float, examples: float) -> float:
    """PSI of a label rate against the reference rate; NaN without examples."""
    if not examples > 0:
        return math.nan
    rate = positives / examples
    return _psi(np.array([reference, 1 - reference]), np.array([rate, 1 - rate]))


def _psi(reference: NDArray[np.float64], observed: NDArray[np.float64]) -> float:
    r, o = np.maximum(reference, _SMOOTHING), np.maximum(observed, _SMOOTHING)
    return float((o - r) @ np.log(o / r))
