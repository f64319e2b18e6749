"""The additive state gives what brute force gives, and shards merge to the whole."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from model.metrics.evaluation_state import FIGURES, EvaluationState
from model.metrics.ranking import reciprocal_rank_per_request


class Sample:
    """Random requests of some users: continuous scores, so that binning shows if it matters."""

    def __init__(self, seed: int, requests: int = 300, users: int = 40) -> None:
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(1, 25, requests)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.users = rng.integers(0, users, requests) * 1_000_003 - 7
        self.truth = 1 / (1 + np.exp(-rng.normal(-1.5, 1.2, self.offsets[-1])))
        self.labels = (rng.random(len(self.truth)) < self.truth).astype(float)
        self.p = 1 / (1 + np.exp(-(np.log(self.truth / (1 - self.truth)) + rng.normal(0, 0.7, len(self.truth)))))
        self.weights = rng.integers(1, 5, len(self.p)).astype(float)

    def state(self, requests: np.ndarray, weighted: bool = False) -> EvaluationState:
        rows = np.concatenate([np.arange(self.offsets[r], self.offsets[r + 1]) for r in requests])
        return EvaluationState.of(
            self.p[rows],
            self.labels[rows],
            self.users[requests],
            np.concatenate([[0], np.cumsum(self.lengths[requests])]),
            weights=self.weights[rows] if weighted else None,
            truth=self.truth[rows],
        )


def test_figures_equal_brute_force() -> None:
    sample = Sample(1)
    found = {name: float(v[0]) for name, v in sample.state(np.arange(300)).figures().items()}
    y, p, rate = sample.labels, sample.p, sample.labels.mean()
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    user = np.repeat(sample.users, sample.lengths)
    own = [(user == u, (user == u).sum()) for u in np.unique(user)]
    aucs = [(roc_auc_score(y[m], p[m]), n) for m, n in own if 0 < y[m].sum() < n]
    lists = [slice(a, b) for a, b in itertools.pairwise(sample.offsets) if y[a:b].sum()]
    ranks = [1 / (1 + np.flatnonzero(y[r][np.argsort(-p[r])])[0]) for r in lists]
    ndcgs = [ndcg_score([y[r]], [p[r]], k=10) if r.stop - r.start > 1 else 1.0 for r in lists]
    assert tuple(found) == FIGURES
    assert found["ne"] == pytest.approx(log_loss(y, p) / entropy, abs=1e-12)
    assert found["ne_bayes"] == pytest.approx(log_loss(y, sample.truth) / entropy, abs=1e-12)
    t, mean = sample.truth, sample.truth.mean()
    expected, least = (-(t * np.log(q) + (1 - t) * np.log(1 - q)).mean() for q in (p, t))
    assert found["ne_expected"] == pytest.approx(expected / -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean)), abs=1e-12)
    assert found["over_bayes"] == pytest.approx(expected / least - 1, abs=1e-12)
    assert found["auc"] == pytest.approx(roc_auc_score(y, p), abs=5e-5)
    assert found["gauc"] == pytest.approx(np.average([a for a, _ in aucs], weights=[n for _, n in aucs]), abs=1e-4)
    assert found["mrr"] == pytest.approx(np.mean(ranks), abs=1e-12)
    assert found["ndcg10"] == pytest.approx(np.mean(ndcgs), abs=1e-12)
    assert found["calibration"] == pytest.approx(p.sum() / y.sum(), abs=1e-12)
    bins = np.array_split(np.argsort(p), 20)
    assert found["ece"] == pytest.approx(sum(abs((p[b] - y[b]).sum()) for b in bins) / len(y), abs=2e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_shards_merge_to_the_whole_whatever_their_order(weighted: bool) -> None:
    sample, rng = Sample(2), np.random.default_rng(2)
    shards = np.array_split(rng.permutation(300), 7)  # a user's requests lie in several shards
    counts = rng.integers(0, 3, (5, len(np.unique(sample.users)))).astype(float)
    whole = sample.state(np.arange(300), weighted)
    merged = reduce(add, [sample.state(s, weighted) for s in shards], EvaluationState.empty())
    assert (merged.rows, merged.requests) == (whole.rows, whole.requests)
    assert merged.users.tolist() == whole.users.tolist()
    for name, values in whole.figures(counts).items():
        np.testing.assert_allclose(merged.figures(counts)[name], values, atol=1e-9, err_msg=name)


def test_a_count_of_two_is_the_user_twice() -> None:
    sample = Sample(3, requests=60, users=9)
    state = sample.state(np.arange(60))
    counts = np.ones((1, len(state.users)))
    counts[0, 4] = 2
    again = np.flatnonzero(sample.users == state.users[4])
    doubled = state + sample.state(again)
    for name in ("ne", "auc", "ndcg10", "mrr", "calibration", "log_loss", "base_rate"):
        assert state.figures(counts)[name][0] == pytest.approx(doubled.figures()[name][0], abs=1e-12), name


def test_a_shard_without_truth_or_whole_lists_leaves_their_figures_out() -> None:
    sample = Sample(4, requests=20)
    bare = EvaluationState.of(sample.p, sample.labels, sample.users, sample.offsets, whole_lists=False)
    merged = sample.state(np.arange(20)) + bare
    assert {"ne_bayes", "over_bayes", "ndcg10", "mrr"}.isdisjoint(merged.figures())
    assert "ne_bayes" in sample.state(np.arange(20)).figures()


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_reciprocal_rank_is_the_mean_over_all_orders_of_ties(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in rows], float), np.array([y for _, y in rows])
    found = reciprocal_rank_per_request(scores, labels, np.array([0, len(rows)]))[0]
    if not labels.any():
        assert math.isnan(found)
        return
    orders = [o for o in itertools.permutations(range(len(rows))) if all(np.diff(scores[list(o)]) <= 0)]
    firsts = [next(place for place, row in enumerate(order, 1) if labels[row]) for order in orders]
    assert found == pytest.approx(np.mean([1 / f for f in firsts]), abs=1e-12)
