"""Every offline figure of one task as an additive state: sums in, figures out, merged by `+`.

What is kept is one row per *cell*, a (user, score bin) pair that occurs: how many examples fell into it, how many of them
were positive, and the sums of predictions and log-losses; and per user what adds up over whole lists (NDCG, reciprocal
rank). Shards of a log, days and slices are merged by addition; a request must not be split between two of them. NE,
log-loss and calibration are exact; AUC, GAUC and ECE see scores in bins of 1/256 log-odds, where pairs within a bin
count one half: about 0.1 % of all pairs, so AUC moves by some 1e-6.

`figures` takes how often each user counts, so that a bootstrap over users is the same computation (`model.metrics.bootstrap`).
Torch-free; no Python per request. Cost: one sort of the examples; per resample one pass over the cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from model.metrics.bootstrap import resampled_auc
from model.metrics.normalized_entropy import clipped
from model.metrics.ranking import calibration_bins, grouped_auc, ndcg_per_request, reciprocal_rank_per_request

NDCG_AT = 10
CALIBRATION_BINS = 20
BINS_PER_UNIT = 256
_LIMIT = 17 * BINS_PER_UNIT  # clipped probabilities lie within ±16.2 log-odds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIGURES = (
    *("ne", "auc", "gauc", "ndcg10", "mrr", "calibration", "ece", "base_rate", "log_loss"),
    *("ne_bayes", "ne_expected", "over_bayes"),
)
"""In the order they are shown. ``gauc``: AUC per user, weighted by impressions, over users with both classes.
``ndcg10``, ``mrr``: mean over requests with a positive. ``calibration``: predicted over observed positives. ``ece``: over
20 bins of equal population. Of logs with true probabilities: ``ne_bayes``, their NE on the same labels; ``ne_expected``, the
model's NE without the noise of labels (cross-entropy with the true probability, over the entropy of its mean);
``over_bayes``, the share by which ``ne_expected`` exceeds that of the true probabilities themselves."""


@dataclass(frozen=True)
class EvaluationState:
    """Sums over labelled examples of one task; `+` merges.

    `users` [U] sorted keys of the users seen. Cells [K], sorted by (bin, user): `owner` index into `users`, `bin`, and the
    weighted sums over their examples. Lists [U]: sums over the requests of each user that have a positive. `rows` and
    `requests` count unweighted. `has_truth`, `has_lists`: whether every part knew true probabilities and whole lists.
    """

    users: Ints
    owner: Ints
    bin: Ints
    examples: Floats
    positives: Floats
    predictions: Floats
    loss: Floats
    truth_loss: Floats
    truth: Floats
    expected_loss: Floats
    least_loss: Floats
    ndcg: Floats
    reciprocal_rank: Floats
    ranked: Floats
    rows: int = 0
    requests: int = 0
    has_truth: bool = True
    has_lists: bool = True

    @classmethod
    def empty(cls) -> EvaluationState:
        """No examples: the zero of `+`."""
        none, index = np.zeros(0), np.zeros(0, np.int64)
        return cls(index, index, index, none, none, none, none, none, none, none, none, none, none, none)

    @classmethod
    def of(
        cls,
        predictions: NDArray[np.floating],
        labels: NDArray[np.floating],
        users: Ints,
        offsets: Ints,
        *,
        weights: Floats | None = None,
        truth: NDArray[np.floating] | None = None,
        whole_lists: bool = True,
    ) -> EvaluationState:
        """Requests of `users` [R] (any int64 keys); request r owns rows offsets[r]:offsets[r+1] of what follows.

        Probabilities and labels [C] (NaN: unknown, left out), `weights` [C] where an example stands for several, `truth`
        [C] true probabilities. `whole_lists`: False of a down-sampled log, whose lists have no NDCG.
        """
        lengths = np.diff(offsets)
        known = ~np.isnan(labels)
        request = np.repeat(np.arange(len(lengths)), lengths)[known]
        p, y = np.asarray(predictions, dtype=np.float64)[known], np.asarray(labels, dtype=np.float64)[known]
        w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)[known]
        present = np.unique(request)
        keys, user_of_present = np.unique(users[present], return_inverse=True)
        user_of_request = np.zeros(len(lengths), np.int64)
        user_of_request[present] = user_of_present
        owner, score_bin = user_of_request[request], _score_bins(p)
        t = np.zeros(len(y)) if truth is None else np.asarray(truth, dtype=np.float64)[known]
        columns = {
            "examples": w,
            "positives": w * y,
            "predictions": w * p,
            "loss": w * _loss(p, y),
            "truth_loss": w * _loss(t, y),
            "truth": w * t,
            "expected_loss": w * _loss(p, t),
            "least_loss": w * _loss(t, t),
        }
        cell_owner, cell_bin, sums = _merged(owner, score_bin, columns, len(keys))
        starts = np.searchsorted(request, np.arange(len(lengths) + 1)).astype(np.int64)
        gains = ndcg_per_request(p, y, starts, NDCG_AT)
        ranks = reciprocal_rank_per_request(p, y, starts)
        ranked = ~np.isnan(gains)
        return cls(
            users=keys.astype(np.int64),
            owner=cell_owner,
            bin=cell_bin,
            **sums,
            ndcg=_added(user_of_request[ranked], gains[ranked], len(keys)),
            reciprocal_rank=_added(user_of_request[ranked], ranks[ranked], len(keys)),
            ranked=_added(user_of_request[ranked], np.ones(int(ranked.sum())), len(keys)),
            rows=len(y),
            requests=len(present),
            has_truth=truth is not None,
            has_lists=whole_lists,
        )

    def __add__(self, other: EvaluationState) -> EvaluationState:
        if not self.rows or not other.rows:
            return other if not self.rows else self
        users = np.union1d(self.users, other.users)
        own, theirs = np.searchsorted(users, self.users), np.searchsorted(users, other.users)
        columns = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _CELL_SUMS}
        owner, score_bin, sums = _merged(
            np.concatenate([own[self.owner], theirs[other.owner]]), np.concatenate([self.bin, other.bin]), columns, len(users)
        )
        lists = {
            name: _added(own, getattr(self, name), len(users)) + _added(theirs, getattr(other, name), len(users))
            for name in _LIST_SUMS
        }
        return EvaluationState(
            users=users,
            owner=owner,
            bin=score_bin,
            **sums,
            **lists,
            rows=self.rows + other.rows,
            requests=self.requests + other.requests,
            has_truth=self.has_truth and other.has_truth,
            has_lists=self.has_lists and other.has_lists,
        )

    def figures(self, counts: Floats | None = None) -> dict[str, Floats]:
        """Every figure of `FIGURES` that applies, [B] each; `counts` [B, U] says how often each user counts (default: once).

        NaN where a figure is not defined (one class only, no request with a positive).
        """
        drawn = np.ones((1, len(self.users))) if counts is None else counts
        sums = {name: drawn @ column for name, column in self._per_user().items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = sums["positives"] / sums["examples"]
            entropy = _entropy(rate)
            found = {
                "ne": sums["loss"] / sums["examples"] / entropy,
                "auc": self._auc(drawn),
                "gauc": sums["auc"] / sums["auc_weight"],
                "calibration": sums["predictions"] / sums["positives"],
                "ece": np.abs(drawn @ self._gaps()).sum(axis=1) / sums["examples"],
                "base_rate": rate,
                "log_loss": sums["loss"] / sums["examples"],
            }
            if self.has_lists:
                found |= {"ndcg10": sums["ndcg"] / sums["ranked"], "mrr": sums["reciprocal_rank"] / sums["ranked"]}
            if self.has_truth:
                found["ne_bayes"] = sums["truth_loss"] / sums["examples"] / entropy
                found["ne_expected"] = sums["expected_loss"] / sums["examples"] / _entropy(sums["truth"] / sums["examples"])
                found["over_bayes"] = sums["expected_loss"] / sums["least_loss"] - 1
        return {name: found[name] for name in FIGURES if name in found}

    def _per_user(self) -> dict[str, Floats]:
        users = len(self.users)
        added = {name: _added(self.owner, getattr(self, name), users) for name in _CELL_SUMS}
        bins, owners, classes, weights = self._by_class()
        own_auc = grouped_auc(bins, classes, owners, users, weights)
        weight = np.where(np.isnan(own_auc), 0, added["examples"])
        return (
            added
            | {name: getattr(self, name) for name in _LIST_SUMS}
            | {
                "auc": np.nan_to_num(own_auc) * weight,
                "auc_weight": weight,
            }
        )

    def _by_class(self) -> tuple[Floats, Ints, Floats, Floats]:
        """Bin, owner, class and weight of the positives and of the negatives of every cell."""
        weights = np.concatenate([self.positives, self.examples - self.positives])
        classes = np.repeat([1.0, 0.0], len(self.bin))
        some = weights > 0
        return np.tile(self.bin, 2)[some].astype(np.float64), np.tile(self.owner, 2)[some], classes[some], weights[some]

    def _auc(self, drawn: Floats) -> Floats:
        bins, owners, classes, weights = self._by_class()
        return resampled_auc(bins, classes, owners, drawn, weights)

    def _gaps(self) -> Floats:
        """Predicted minus observed positives per user and calibration bin, [U, bins]."""
        group = calibration_bins(self.bin.astype(np.float64), CALIBRATION_BINS, self.examples)
        shape = (len(self.users), CALIBRATION_BINS)
        gap = _added(self.owner * CALIBRATION_BINS + group, self.predictions - self.positives, shape[0] * shape[1])
        return gap.reshape(shape)


_CELL_SUMS = ("examples", "positives", "predictions", "loss", "truth_loss", "truth", "expected_loss", "least_loss")
_LIST_SUMS = ("ndcg", "reciprocal_rank", "ranked")
assert {*_CELL_SUMS, *_LIST_SUMS} <= {f.name for f in fields(EvaluationState)}


def _merged(owner: Ints, score_bin: Ints, columns: Mapping[str, Floats], users: int) -> tuple[Ints, Ints, dict[str, Floats]]:
    """Owner, bin and sums of the cells of rows that may share (bin, user), sorted by both."""
    code, row = np.unique(score_bin * users + owner, return_inverse=True)
    sums = {name: _added(row, column, len(code)) for name, column in columns.items()}
    return code % max(users, 1), code // max(users, 1), sums


def _score_bins(p: Floats) -> Ints:
    q = clipped(p)
    scaled = np.floor((np.log(q) - np.log1p(-q)) * BINS_PER_UNIT) + _LIMIT
    return np.asarray(np.clip(scaled, 0, 2 * _LIMIT), dtype=np.int64)


def _added(index: Ints, values: Floats, count: int) -> Floats:
    """Sums of `values` per index, [count]."""
    return np.bincount(index, weights=values, minlength=count).astype(np.float64)


def _loss(p: NDArray[np.floating], y: Floats) -> Floats:
    """Log-loss per example, clipped as `NEState` does; `y` may be a probability, then it is the expected one."""
    q = clipped(p)
    return np.asarray(-(y * np.log(q) + (1 - y) * np.log1p(-q)), dtype=np.float64)


def _entropy(rate: Floats) -> Floats:
    return np.asarray(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)), dtype=np.float64)
