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

Called by `model.data.synthetic`; pure numpy. Cost: a few seconds for 200,000 shown items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.data.synthetic_world import Floats, SyntheticConfig, fade, position_free, sigmoid

QUANTILES = 48
MAX_ROWS = 60_000


@dataclass
class Observations:
    """What the simulation saw, per request and (flat, by request) per shown item."""

    config: SyntheticConfig
    user: list[int]
    segment: list[int]
    bags: list[Floats]  # per request [2, categories]: counts of clicks and carts
    fade: list[float]
    interest: list[Floats]  # per request [categories]
    category: list[NDArray[np.int64]]
    static: list[Floats]
    probability: list[Floats]  # with position

    @classmethod
    def empty(cls, config: SyntheticConfig) -> Observations:
        return cls(config, [], [], [], [], [], [], [], [])

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
        count = self.config.categories
        self.user.append(user)
        self.segment.append(segment)
        self.bags.append(
            np.stack([np.bincount(clicks, minlength=count), np.bincount(carts, minlength=count)]).astype(np.float64)
        )
        self.fade.append(fade(self.config, since_click_s) if len(clicks) else 0.0)
        self.interest.append(interest)
        self.category.append(category)
        self.static.append(static)
        self.probability.append(probability)


def bayes_figures(config: SyntheticConfig, seen: Observations) -> dict[str, float]:
    """``ne_bayes``, ``ne_no_order``, ``ne_no_history``, ``ne_with_position`` (the last one knows the position shown)."""
    lengths = np.array([len(c) for c in seen.category])
    request = np.repeat(np.arange(len(lengths)), lengths)
    category, static = np.concatenate(seen.category), np.concatenate(seen.static)
    added = np.stack(seen.interest)
    shown = lengths[request]
    truth = _position_free(config, (static + added[request, category])[:, None], shown)[:, 0]
    base = truth.mean()
    entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
    with_position = np.concatenate(seen.probability)
    without_history = _without_history(config, seen, added, request, category, static, shown)
    return {
        "ne_bayes": float(_cross_entropy(truth, truth).mean() / entropy),
        "ne_no_order": float(_without_order(config, seen, request, category, static, truth) / entropy),
        "ne_no_history": float(_cross_entropy(truth, without_history).mean() / entropy),
        "ne_with_position": float(_cross_entropy(with_position, with_position).mean() / entropy),
        "base_rate": float(base),
    }


def _without_history(
    config: SyntheticConfig,
    seen: Observations,
    added: Floats,
    request: NDArray[np.int64],
    category: NDArray[np.int64],
    static: Floats,
    shown: NDArray[np.int64],
) -> Floats:
    """E[truth | segment, category, static]: the mean over the cell's quantiles of what history adds."""
    segment = np.array(seen.segment)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    cells = np.zeros((config.segments, config.categories, QUANTILES))
    for own in np.unique(segment):
        cells[own] = np.quantile(added[segment == own], levels, axis=0).T
    averaged = _position_free(config, static[:, None] + cells[segment[request], category], shown).mean(axis=1)
    return np.asarray(averaged, dtype=np.float64)


def _position_free(config: SyntheticConfig, logits: Floats, shown: NDArray[np.int64]) -> Floats:
    """`position_free` for rows of requests of different sizes, by interpolation on a fine grid (error below 1e-6)."""
    grid = np.linspace(-20, 20, 8_001)
    out = np.empty_like(logits)
    for size in np.unique(shown):
        own = shown == size
        out[own] = np.interp(logits[own], grid, position_free(config, grid, int(size)))
    return out


def _without_order(
    config: SyntheticConfig,
    seen: Observations,
    request: NDArray[np.int64],
    category: NDArray[np.int64],
    static: Floats,
    truth: Floats,
) -> float:
    """Cross-entropy of the regression on the bag, fitted on one half of the users and measured on the other, both ways."""
    bags = np.stack(seen.bags)  # [N, 2, K]
    turn = (category[:, None] + np.arange(config.categories)) % config.categories  # category at each distance
    clicks, carts = (np.take_along_axis(bags[request, kind], turn, axis=1) for kind in (0, 1))
    x = _bag_features(clicks, carts, np.array(seen.fade)[request, None], static[:, None])
    side_of = np.array(seen.user)[request] % 2
    losses = np.empty(len(x))
    for side in (0, 1):
        fitted, measured = np.flatnonzero(side_of == side), np.flatnonzero(side_of != side)
        weights = _fit_logistic(x[fitted[:MAX_ROWS]], truth[fitted[:MAX_ROWS]])
        losses[measured] = _cross_entropy(truth[measured], sigmoid((x[measured] @ weights).astype(np.float64)))
    return float(losses.mean())


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
