"""How well any model can do on the synthetic log: Bayes NE, and what is left without order and without history.

All three are expected, position-free NEs: the cross-entropy of the true probability t with a prediction q, averaged over
shown items, over the entropy of the mean of t (no label noise).

* Bayes: q = t.
* Without history: candidates and surfaces are drawn independently of the history, so given the user's segment and the
  item's category the history's contribution h has one distribution, whatever the rest. It is known from every request of
  the simulation, and q = E_h[p(static + h)] over its quantiles: the exact conditional expectation up to sampling.
* Without order: the predictor sees the bag of clicks, the bag of carts, the time since the newest click and the static
  part, but neither ranks nor times. The posterior over orders has no closed form, so a logistic regression on the bag
  and its pairs (relative to the candidate's category: the world is symmetric on the ring) is fitted to t on half
  of the users and measured on the other half, both ways. Any bag predictor bounds the best one from above: the
  true figure is at or slightly below it.

Called by `model.data.synthetic`; pure numpy. Cost: a second or two, and one more per 200,000 shown items, up to a million.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.synthetic_world import Floats, SyntheticConfig, fade, position_free, sigmoid

QUANTILES = 48
MAX_ROWS = 60_000
BLOCK_ROWS = 200_000
MEASURED_ROWS = 1_000_000
"""The two bounds that need a prediction are measured on an even sample of as many shown items; the others on all."""


@dataclass
class Observations:
    """What the simulation sees, appended to request by request; `columns` is what the bounds are computed from."""

    config: SyntheticConfig
    user: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    clicks: list[NDArray[np.int64]] = field(default_factory=list)  # categories
    carts: list[NDArray[np.int64]] = field(default_factory=list)
    since_click_s: list[float] = field(default_factory=list)
    interest: list[Floats] = field(default_factory=list)  # [categories]
    category: list[NDArray[np.int64]] = field(default_factory=list)  # of the shown items, like the next two
    static: list[Floats] = field(default_factory=list)
    probability: list[Floats] = field(default_factory=list)  # with position

    def add(
        self,
        user: int,
        segment: int,
        clicks: NDArray[np.int64],
        carts: NDArray[np.int64],
        since_click_s: float,
        interest: Floats,
        category: NDArray[np.int64],
        static: Floats,
        probability: Floats,
    ) -> None:
        """One request: its history (categories), what it adds per category, and its shown items."""
        self.user.append(user)
        self.segment.append(segment)
        self.clicks.append(clicks)
        self.carts.append(carts)
        self.since_click_s.append(since_click_s)
        self.interest.append(interest)
        self.category.append(category)
        self.static.append(static)
        self.probability.append(probability)

    def columns(self) -> Observed:
        """All requests as arrays."""
        lengths = np.array([len(c) for c in self.category])
        request = np.repeat(np.arange(len(lengths)), lengths)
        category, static, added = np.concatenate(self.category), np.concatenate(self.static), np.stack(self.interest)
        shown = lengths[request]
        faded = np.array([fade(self.config, s) for s in self.since_click_s])
        return Observed(
            user=np.array(self.user),
            segment=np.array(self.segment),
            bags=np.stack([self._bag(self.clicks), self._bag(self.carts)], axis=1),
            fade=np.where([len(c) > 0 for c in self.clicks], faded, 0.0),
            interest=added,
            request=request,
            category=category,
            static=static,
            shown=shown,
            truth=_exactly_position_free(self.config, static + added[request, category], shown),
            probability=np.concatenate(self.probability),
        )

    def _bag(self, histories: list[NDArray[np.int64]]) -> Floats:
        """Counts per category of every request's history, [N, categories]."""
        count = self.config.categories
        owner = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        counts = np.bincount(owner * count + np.concatenate(histories), minlength=len(histories) * count)
        return counts.reshape(len(histories), count).astype(np.float64)


@dataclass(frozen=True)
class Observed:
    """N requests, C shown items in all."""

    user: NDArray[np.int64]  # [N]
    segment: NDArray[np.int64]  # [N]
    bags: Floats  # [N, 2, categories]: counts of clicks and carts
    fade: Floats  # [N]; 0 without clicks
    interest: Floats  # [N, categories]
    request: NDArray[np.int64]  # [C]
    category: NDArray[np.int64]  # [C]
    static: Floats  # [C]
    shown: NDArray[np.int64]  # [C]: how many were shown in the request
    truth: Floats  # [C], position-free
    probability: Floats  # [C], with position

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many items each request showed, [N]."""
        return np.bincount(self.request, minlength=len(self.user)).astype(np.int64)

    @classmethod
    def joined(cls, parts: Sequence[Observed]) -> Observed:
        """The requests of all parts, one part after the other."""
        before = np.cumsum([0, *(len(p.user) for p in parts)])
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        columns["request"] = np.concatenate([p.request + b for p, b in zip(parts, before[:-1], strict=True)])
        return cls(**columns)

    def rows_of(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the shown items of the given requests, in that order."""
        own = self.lengths
        starts, sizes = np.cumsum(own) - own, own[requests]
        ends = np.cumsum(sizes)
        return np.repeat(starts[requests] - (ends - sizes), sizes) + np.arange(sizes.sum())

    def taken(self, requests: NDArray[np.int64]) -> Observed:
        """The given requests, in that order."""
        rows, sizes = self.rows_of(requests), self.lengths[requests]
        per_request = {"user", "segment", "bags", "fade", "interest"}
        columns = {f.name: getattr(self, f.name)[requests if f.name in per_request else rows] for f in fields(self)}
        columns["request"] = np.repeat(np.arange(len(requests)), sizes)
        return Observed(**columns)


def bayes_figures(config: SyntheticConfig, seen: Observed) -> dict[str, Any]:
    """``ne_bayes``, ``ne_no_order``, ``ne_no_history``, ``ne_with_position`` (the last one knows the position shown).

    The same under ``newest_tenth``, of the requests that a split by time holds out: histories are longest there.
    """
    newest = seen.request >= int(0.9 * len(seen.user))
    everywhere, late = _sample(np.arange(len(newest))), _sample(np.flatnonzero(newest))
    chosen = np.union1d(everywhere, late)
    guesses = {"ne_no_order": _without_order(config, seen, chosen), "ne_no_history": _without_history(config, seen, chosen)}

    def figures(rows: NDArray[np.int64] | slice, sample: NDArray[np.int64]) -> dict[str, float]:
        truth, shown = seen.truth[rows], seen.probability[rows]
        base = truth.mean()
        entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
        of_sample, at = seen.truth[sample], np.searchsorted(chosen, sample)
        return {
            "ne_bayes": float(_cross_entropy(truth, truth).mean() / entropy),
            **{name: float(_cross_entropy(of_sample, guess[at]).mean() / entropy) for name, guess in guesses.items()},
            "ne_with_position": float(_cross_entropy(shown, shown).mean() / entropy),
            "base_rate": float(base),
        }

    return figures(slice(None), everywhere) | {"newest_tenth": figures(np.flatnonzero(newest), late)}


def _sample(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `MEASURED_ROWS` of the rows, evenly spaced."""
    return rows[:: -(-len(rows) // MEASURED_ROWS)]


def _without_history(config: SyntheticConfig, seen: Observed, rows: NDArray[np.int64]) -> Floats:
    """E[truth | segment, category, static] of `rows`: the mean over the cell's quantiles of what history adds."""
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    cells = np.zeros((config.segments, config.categories, QUANTILES))
    for own in np.unique(seen.segment):
        cells[own] = np.quantile(seen.interest[seen.segment == own], levels, axis=0).T
    averaged = np.empty(len(rows))
    for block in _blocks(len(rows)):
        own = rows[block]
        logits = seen.static[own, None] + cells[seen.segment[seen.request[own]], seen.category[own]]
        averaged[block] = _position_free(config, logits, seen.shown[own]).mean(axis=1)
    return averaged


def _blocks(rows: int) -> Iterator[slice]:
    """Rows in pieces, so that memory does not grow with the log."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, rows, BLOCK_ROWS))


def _exactly_position_free(config: SyntheticConfig, logits: Floats, shown: NDArray[np.int64]) -> Floats:
    """`position_free` for rows [C] of requests of different sizes."""
    out = np.empty_like(logits)
    for size in np.unique(shown):
        own = shown == size
        out[own] = position_free(config, logits[own], int(size))
    return out


def _position_free(config: SyntheticConfig, logits: Floats, shown: NDArray[np.int64]) -> Floats:
    """The same for rows [C, ...], by interpolation on a fine grid (error below 1e-6)."""
    grid = np.linspace(-20, 20, 8_001)
    out = np.empty_like(logits)
    for size in np.unique(shown):
        own = shown == size
        out[own] = np.interp(logits[own], grid, position_free(config, grid, int(size)))
    return out


def _without_order(config: SyntheticConfig, seen: Observed, rows: NDArray[np.int64]) -> Floats:
    """Predictions for `rows` of the regression on the bag, fitted on one half of the users and measured on the other."""
    side_of = seen.user[seen.request] % 2
    fitted = [np.flatnonzero(side_of == side)[:MAX_ROWS] for side in (0, 1)]
    weights = [_fit_logistic(_features_of(config, seen, own), seen.truth[own]) for own in fitted]
    predictions = np.empty(len(rows))
    for block in _blocks(len(rows)):
        for side in (0, 1):
            places = block.start + np.flatnonzero(side_of[rows[block]] != side)
            logits = _features_of(config, seen, rows[places]) @ weights[side]
            predictions[places] = sigmoid(logits.astype(np.float64))
    return predictions


def _features_of(config: SyntheticConfig, seen: Observed, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """`_bag_features` of the given shown items."""
    request = seen.request[rows]
    turn = (seen.category[rows, None] + np.arange(config.categories)) % config.categories  # category at each distance
    clicks, carts = (np.take_along_axis(seen.bags[request, kind], turn, axis=1) for kind in (0, 1))
    return _bag_features(clicks, carts, seen.fade[request, None], seen.static[rows, None])


def _bag_features(clicks: Floats, carts: Floats, fade: Floats, static: Floats) -> NDArray[np.float32]:
    """Columns of the regression. clicks, carts [C, K]: counts by distance from the candidate's category; fade, static [C, 1].

    Shares of the bag at every distance (what recency-weighted pull averages to), products of two shares (which steps the
    last two clicks can have made), each again where the bag is small and so tells more about the newest clicks.
    """
    total = clicks.sum(axis=1, keepdims=True)
    share = clicks / np.maximum(total, 1)
    left, right = np.triu_indices(clicks.shape[1])
    pairs = share[:, left] * share[:, right]
    faded = [fade * share, fade * pairs, *(fade * share * (total == n) for n in (1, 2, 3)), fade * pairs * (total <= 4)]
    sizes = [np.log1p(total), total == 0, total == 1, fade, static, static**2, np.ones_like(static)]
    columns = [share, np.minimum(clicks, 6) / 6, *faded, np.minimum(carts, 1), np.minimum(carts, 3) / 3, *sizes]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _fit_logistic(x: NDArray[np.float32], target: Floats, steps: int = 12, ridge: float = 3.0) -> NDArray[np.float32]:
    """Weights of a logistic regression on soft targets, by Newton's method (convex: no seed, no step size)."""
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        q = sigmoid((x @ weights.astype(np.float32)).astype(np.float64))
        gradient = x.T @ (q - target).astype(np.float32) + ridge * weights
        curvature = (x * (q * (1 - q)).astype(np.float32)[:, None]).T @ x + ridge * np.eye(len(weights))
        move = np.linalg.solve(curvature.astype(np.float64), gradient.astype(np.float64))
        weights -= move
        if gradient @ move < 1e-5 * len(target):  # twice the loss that is still to be gained
            break
    return weights.astype(np.float32)


def _cross_entropy(truth: Floats, prediction: Floats) -> Floats:
    """Expected log-loss of a prediction where labels have probability `truth`."""
    q = np.clip(prediction, 1e-7, 1 - 1e-7)
    return np.asarray(-(truth * np.log(q) + (1 - truth) * np.log1p(-q)), dtype=np.float64)
