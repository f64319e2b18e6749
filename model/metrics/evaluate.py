"""Figures of predictions on a request log, each with a 95 % bootstrap interval over users.

`evaluate_predictions` is what `kunlun evaluate`, the demo and benchmarks report; `task_draws` gives
the raw resamples, so that two models can be compared pairwise on the same users.

Invariant: examples with an unknown label are left out; a figure without a value (one class only, no
positive) is left out of the result, so that it is always valid JSON. NE shares its sums with the
online metric. Figures are stated for the full distribution: of a log that was down-sampled, examples
count by `RequestLog.weights`. Cost: about 1 s for 50,000 examples and 300 resamples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.request_log import RequestLog
from model.metrics.bootstrap import Interval, difference_interval, interval, resampled_auc, resamples
from model.metrics.normalized_entropy import clipped
from model.metrics.ranking import calibration_bins, grouped_auc, ndcg_per_request

RESAMPLES = 300
NDCG_AT = 10
BINS = 20


@dataclass(frozen=True)
class TaskDraws:
    """One task's figures and their values in every resample, by name; and what they were computed over."""

    values: dict[str, float]
    draws: dict[str, NDArray[np.float64]]
    examples: int
    users: int
    requests: int

    def intervals(self) -> dict[str, Interval]:
        """The defined figures with their intervals."""
        return {n: interval(v, self.draws[n]) for n, v in self.values.items() if math.isfinite(v)}


def evaluate_predictions(
    predictions: NDArray[np.floating], log: RequestLog, *, count: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Per task: ``examples``, ``users``, ``requests``, and per figure ``{"value", "low", "high"}``.

    Predictions [C, tasks] are probabilities in the order of the log's shown items. Figures: ne, auc, gauc (per user,
    weighted by impressions, users with both classes), ndcg10 (requests with a positive; left out of a down-sampled log,
    whose lists are not whole), calibration (predicted over observed positives), ece (20 bins of equal population),
    base_rate, log_loss, and for synthetic logs ne_bayes, the NE of the true probabilities on the same labels.
    """
    result: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(log.schema.tasks):
        drawn = task_draws(predictions[:, number], log, number, count=count, seed=seed)
        figures = {name: asdict(i) for name, i in drawn.intervals().items()}
        result[task.name] = {"examples": drawn.examples, "users": drawn.users, "requests": drawn.requests, **figures}
    return result


def compare_predictions(
    predictions: NDArray[np.floating],
    others: NDArray[np.floating],
    log: RequestLog,
    *,
    count: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Per task and figure the difference `predictions` - `others`, with the paired interval over users."""
    result = {}
    for number, task in enumerate(log.schema.tasks):
        a, b = (task_draws(p[:, number], log, number, count=count, seed=seed) for p in (predictions, others))
        result[task.name] = {
            name: asdict(difference_interval(value, a.draws[name], b.values[name], b.draws[name]))
            for name, value in a.values.items()
            if math.isfinite(value - b.values[name])
        }
    return result


def task_draws(
    predictions: NDArray[np.floating], log: RequestLog, task: int = 0, *, count: int = RESAMPLES, seed: int = 0
) -> TaskDraws:
    """Figures of one task's predictions [C] and their values in `count` resamples of the log's users."""
    if len(predictions) != len(log.item_index):
        raise ValueError(f"predictions: expected one row per shown item ({len(log.item_index):,}), found {len(predictions):,}")
    lengths = np.diff(log.offsets)
    known = ~np.isnan(log.labels[:, task])
    request = np.repeat(np.arange(len(lengths)), lengths)[known]
    p, y = np.asarray(predictions, dtype=np.float64)[known], log.labels[known, task].astype(np.float64)
    w = log.weights()[known]
    if not len(p):
        return TaskDraws({}, {}, 0, 0, 0)
    present, user_of_request = np.unique(log.user_index, return_inverse=True)
    user, users = user_of_request[request], len(present)
    sums = _sums_per_user(p, y, w, user, users)
    if log.negative_rate == 1:
        sums |= _ndcg_sums(p, y, request, user_of_request, users)
    if log.truth is not None:
        sums["bayes_loss"] = _added(user, w * _loss(log.truth[known, task], y), users)
    drawn = np.concatenate([np.ones((1, users)), resamples(users, count, seed)])  # row 0 is the log itself
    figures = _figures({name: drawn @ column for name, column in sums.items()})
    figures["auc"] = resampled_auc(p, y, user, drawn, w)
    names = [name for name in ORDER if name in figures]
    values = {name: float(figures[name][0]) for name in names}
    draws = {name: figures[name][1:] for name in names}
    return TaskDraws(values, draws, len(p), users, len(np.unique(request)))


ORDER = ("ne", "auc", "gauc", "ndcg10", "calibration", "ece", "base_rate", "log_loss", "ne_bayes")
Sums = dict[str, NDArray[np.float64]]


def _sums_per_user(
    p: NDArray[np.float64], y: NDArray[np.float64], w: NDArray[np.float64], user: NDArray[np.int64], users: int
) -> Sums:
    """Everything that adds up over examples of weights `w`, [users] each (`gaps`: [users, bins])."""
    own_auc = grouped_auc(p, y, user, users, w)
    examples = _added(user, w, users)
    weight = np.where(np.isnan(own_auc), 0, examples)
    return {
        "examples": examples,
        "positives": _added(user, w * y, users),
        "predictions": _added(user, w * p, users),
        "loss": _added(user, w * _loss(p, y), users),
        "auc": np.nan_to_num(own_auc) * weight,
        "auc_weight": weight,
        "gaps": _added(user * BINS + calibration_bins(p, BINS, w), w * (p - y), users * BINS).reshape(users, BINS),
    }


def _ndcg_sums(
    p: NDArray[np.float64], y: NDArray[np.float64], request: NDArray[np.int64], user_of_request: NDArray[np.int64], users: int
) -> Sums:
    offsets = np.searchsorted(request, np.arange(len(user_of_request) + 1)).astype(np.int64)
    per_request = ndcg_per_request(p, y, offsets, NDCG_AT)
    ranked = (~np.isnan(per_request)).astype(np.float64)
    gains = np.nan_to_num(per_request)
    return {"ndcg": _added(user_of_request, gains, users), "ranked": _added(user_of_request, ranked, users)}


def _added(index: NDArray[np.int64], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Sums of `values` per index, [count]."""
    return np.bincount(index, weights=values, minlength=count).astype(np.float64)


def _figures(total: Sums) -> Sums:
    """Figures from sums, [B] each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = total["positives"] / total["examples"]
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        figures = {
            "ne": total["loss"] / total["examples"] / entropy,
            "gauc": total["auc"] / total["auc_weight"],
            "calibration": total["predictions"] / total["positives"],
            "ece": np.abs(total["gaps"]).sum(axis=1) / total["examples"],
            "base_rate": rate,
            "log_loss": total["loss"] / total["examples"],
        }
        if "ranked" in total:
            figures["ndcg10"] = total["ndcg"] / total["ranked"]
        if "bayes_loss" in total:
            figures["ne_bayes"] = total["bayes_loss"] / total["examples"] / entropy
    return figures


def _loss(p: NDArray[np.floating], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-loss per example, clipped as `NEState` does."""
    q = clipped(p)
    return np.asarray(-np.where(y > 0, np.log(q), np.log1p(-q)), dtype=np.float64)
