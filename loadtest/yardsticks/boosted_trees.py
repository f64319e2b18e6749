"""Gradient-boosted trees stacked on logistic regression: an offline yardstick of what hand-made features reach on a log.

Trees read the logit of `one_hot`'s regression (out of fold on the training part), the item's numbers, the user's smoothed
click rate and time since the last event, whether the user clicked or saw the same item before, and how the user treated
items of the same kind: the smoothed click rate per shared feature value. Everything is computed from the histories that a
request sees (`RequestLog.histories`), which is what serving reads; the position is not read.

No column counts events. Counts grow with the length of a history, so that a split which holds out every user's last request
has most of its test rows beyond the training range, where a tree knows nothing and follows its outermost leaf.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from loadtest.yardsticks.one_hot import fitted, one_hot
from model.data.request_log import RequestLog
from model.data.split import Split
from model.features import FeatureEncoder
from model.hashing import MISSING_KEY
from model.history import newest_event_ms
from model.records import ITEM
from model.schema import FeatureKind
from model.training.batches import BatchMaker
from model.training.calibration import calibrated, fit_platt

FOLDS = 5
PRIOR = 5.0
"""Views worth of the overall rate that a click rate starts with."""


def boosted_trees(
    log: RequestLog,
    encoder: FeatureEncoder,
    split: Split,
    *,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of the first task for the test part's shown items: of the regression alone, and of the trees on it.

    Both are calibrated on the validation part as a training run is; trees also stop by it. Clicks are events of the schema's
    first type, views of its last.
    """
    positive, shown = log.schema.events[0].name, log.schema.events[-1].name
    maker = BatchMaker(log, encoder)
    parts = (split.train, split.validation, split.test)
    labels = [log.labels[log.rows_of(part), 0] for part in parts]
    note("one-hot features")
    wide = [one_hot(maker, part) for part in parts]
    note(f"logistic regression on {wide[0].shape[1]:,} columns, and {FOLDS} folds of it")
    regression = fitted(wide[0], labels[0], seed=seed)
    stacked: list[NDArray[np.float32]] = [_out_of_fold(wide[0], labels[0], np.diff(log.offsets)[split.train], seed)]
    stacked += [regression.decision_function(x).astype(np.float32) for x in wide[1:]]
    note("features of histories")
    features = HistoryFeatures(log, positive, shown, float(labels[0].mean()))
    x = [np.column_stack([logit, features.of(part)]) for logit, part in zip(stacked, parts, strict=True)]
    note(f"trees on {x[0].shape[1]} columns")
    trees = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=400, max_leaf_nodes=15, min_samples_leaf=100, l2_regularization=5.0,
        early_stopping=True, n_iter_no_change=20, random_state=seed,
    ).fit(x[0], labels[0], X_val=x[1], y_val=labels[1])  # fmt: skip
    boosted = [_logits(trees, features) for features in x[1:]]
    return (
        calibrated(stacked[2], fit_platt(stacked[1], labels[1])),
        calibrated(boosted[1], fit_platt(boosted[0], labels[1])),
    )


class HistoryFeatures:
    """Per shown item: numbers of the item, the user's click rate, and the user's past with items of its kind, as rates."""

    def __init__(self, log: RequestLog, positive: str, shown: str, rate: float) -> None:
        self.log, self.positive, self.shown, self.rate = log, positive, shown, rate
        order = np.argsort(log.item_keys)
        self.sorted_keys, self.order = log.item_keys[order], order
        self.kinds = [self._kind(f.name) for f in log.schema.item_features if f.kind is not FeatureKind.NUMERIC]
        numbers = [f.name for f in log.schema.item_features if f.kind is FeatureKind.NUMERIC]
        self.numbers = np.column_stack([log.items[n].astype(np.float64) for n in numbers] or [np.zeros((len(log.items), 0))])

    def of(self, requests: NDArray[np.int64]) -> NDArray[np.float64]:
        """Features [C', columns] of the shown items of `requests`."""
        return np.concatenate([self._of_request(int(r)) for r in requests])

    def _of_request(self, request: int) -> NDArray[np.float64]:
        log = self.log
        histories = log.histories(request)
        items = log.item_index[log.shown(request)]
        clicks, views = self._items(histories[self.positive][ITEM]), self._items(histories[self.shown][ITEM])
        newest = newest_event_ms(list(histories.values()))
        since = np.nan if newest is None else (log.time_ms[request] - newest) / 1000
        user = np.array([self._rate(len(clicks), len(views)), since])
        columns = [self.numbers[items], np.tile(user, (len(items), 1))]
        columns.append(np.column_stack([(items[:, None] == seen).any(1) for seen in (clicks, views)]))
        for kind in self.kinds:
            clicked, viewed = np.asarray(kind[clicks].sum(0)).ravel(), np.asarray(kind[views].sum(0)).ravel()
            columns.append((kind[items] @ self._rate(clicked, viewed))[:, None])
        return np.concatenate(columns, axis=1)

    def _rate(self, clicks: NDArray[np.float64] | int, views: NDArray[np.float64] | int) -> NDArray[np.float64]:
        return np.asarray((clicks + PRIOR * self.rate) / (np.maximum(views, clicks) + PRIOR))

    def _items(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        at = np.minimum(np.searchsorted(self.sorted_keys, keys), len(self.sorted_keys) - 1)
        found: NDArray[np.int64] = self.order[at[self.sorted_keys[at] == keys]]
        return found

    def _kind(self, feature: str) -> sp.csr_matrix:
        """Items × values of one feature; a multi-valued one shares 1 between its values."""
        column = self.log.items[feature].reshape(len(self.log.items), -1)
        present = column != MISSING_KEY
        values = np.unique(column[present], return_inverse=True)[1]
        weights = np.broadcast_to(1.0 / np.maximum(present.sum(1, keepdims=True), 1), column.shape)[present]
        width = int(values.max(initial=-1)) + 1
        return sp.csr_matrix((weights, (np.nonzero(present)[0], values)), shape=(len(column), max(1, width)))


def _logits(trees: HistGradientBoostingClassifier, features: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(trees.decision_function(features), dtype=np.float32)


def _out_of_fold(
    features: sp.csr_matrix, labels: NDArray[np.float32], sizes: NDArray[np.int64], seed: int
) -> NDArray[np.float32]:
    """Logits [C'] of regressions that have not seen the row's request; `sizes`: shown items per request."""
    fold = np.repeat(np.random.default_rng(seed).integers(0, FOLDS, len(sizes)), sizes)
    logits = np.zeros(len(labels), dtype=np.float32)
    for number in range(FOLDS):
        rest, own = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        logits[own] = fitted(features[rest], labels[rest], seed=seed).decision_function(features[own])
    return logits
