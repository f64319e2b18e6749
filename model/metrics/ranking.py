"""What ranking and calibration figures are made of: AUC by group, NDCG@k and reciprocal rank by request, calibration bins.

Pure numpy over flat arrays of examples; called by `model.metrics.evaluation_state`.
Invariant: ties never help or hurt. Equal scores share their rank in AUC and get their expected gain in
NDCG and MRR, so a constant prediction gets an AUC of 0.5 and the NDCG of a random order. Cost: one sort.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def grouped_auc(
    scores: Floats, labels: Floats, groups: NDArray[np.int64], count: int, weights: Floats | None = None
) -> NDArray[np.float64]:
    """AUC inside each group, [count]; NaN for groups with one class only.

    Scores, labels, groups (numbered from 0) and weights (1 unless given) [N].
    """
    order = np.lexsort((scores, groups))
    group, positive = groups[order], np.asarray(labels)[order] > 0
    weight = np.ones(len(order)) if weights is None else np.asarray(weights, dtype=np.float64)[order]
    tie = _tie_numbers(np.asarray(scores)[order], group)
    ups, downs = np.bincount(tie, weight * positive), np.bincount(tie, weight * ~positive)
    owner = group[_starts(tie)]
    negatives = np.bincount(owner, downs, minlength=count)
    of_groups_before = np.cumsum(negatives) - negatives
    below = np.cumsum(downs) - downs / 2 - of_groups_before[owner]
    wins = np.bincount(owner, ups * below, minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(wins / (np.bincount(owner, ups, minlength=count) * negatives), dtype=np.float64)


def ndcg_per_request(scores: Floats, labels: Floats, offsets: NDArray[np.int64], k: int = 10) -> NDArray[np.float64]:
    """NDCG@k with binary gains per request [R]; NaN for requests without a positive (they have no ideal order).

    Request r owns rows offsets[r]:offsets[r+1]. Tied scores get the average discount of the places they share
    (McSherry and Najork 2008), so the order of the input does not matter.
    """
    lengths = np.diff(offsets)
    request = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-np.asarray(scores, dtype=np.float64), request))
    place = np.arange(len(order)) - np.repeat(offsets[:-1], lengths)
    discounts = np.zeros(int(lengths.max(initial=0)) + 1)
    discounts[:k] = (1 / np.log2(np.arange(len(discounts)) + 2))[:k]
    tie = _tie_numbers(np.asarray(scores)[order], request)
    shared = np.bincount(tie, weights=discounts[place]) / np.maximum(np.bincount(tie), 1)
    gain = np.bincount(request, weights=shared[tie] * (np.asarray(labels)[order] > 0), minlength=len(lengths))
    positives = np.bincount(request, weights=np.asarray(labels) > 0, minlength=len(lengths)).astype(np.int64)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[positives]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(positives > 0, gain / np.where(positives > 0, ideal, 1), np.nan), dtype=np.float64)


def reciprocal_rank_per_request(scores: Floats, labels: Floats, offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / place of the best placed positive per request [R]; NaN for requests without a positive.

    Request r owns rows offsets[r]:offsets[r+1]. Tied scores are placed in random order, and the expectation over these
    orders is returned: with m positives among g tied rows the first is later than f with chance Π_{i<f} (g-m-i)/(g-i).
    """
    lengths = np.diff(offsets)
    request = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-np.asarray(scores, dtype=np.float64), request))
    tie = _tie_numbers(np.asarray(scores)[order], request)
    hits = np.bincount(tie, weights=np.asarray(labels)[order] > 0)
    starts, sizes = _starts(tie), np.bincount(tie)
    owner = request[starts] if len(starts) else starts
    hit = np.flatnonzero(hits)
    requests, first = np.unique(owner[hit], return_index=True)  # ties are in order, so the first hit is the best placed
    best = hit[first]
    before, size, positives = starts[best] - offsets[requests], sizes[best], hits[best]
    expected, later = np.zeros(len(best)), np.ones(len(best))  # later: chance that no positive came yet
    for step in range(int(size.max(initial=0))):
        here = np.clip(positives / np.maximum(size - step, 1), 0, 1)
        expected += later * here / (before + step + 1)
        later = later * (1 - here)
    out = np.full(len(lengths), np.nan)
    out[requests] = expected
    return out


def calibration_bins(predictions: Floats, bins: int = 20, weights: Floats | None = None) -> NDArray[np.int64]:
    """Bin of every prediction [N]: `bins` bins of equal population (or weight [N]) by rank; equal predictions share a bin."""
    _, value = np.unique(predictions, return_inverse=True)
    population = np.bincount(value, weights).astype(np.float64)
    start = np.cumsum(population) - population
    return np.asarray((start * bins // max(population.sum(), 1))[value], dtype=np.int64)


def _tie_numbers(scores: Floats, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the tie each row of sorted (group, score) rows belongs to."""
    changed = np.ones(len(scores), dtype=bool)
    changed[1:] = (scores[1:] != scores[:-1]) | (groups[1:] != groups[:-1])
    return np.cumsum(changed) - 1


def _starts(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """First row of each run of equal numbers."""
    return np.flatnonzero(np.diff(numbers, prepend=-1))
