"""The synthetic world: frozen parameters, what is drawn once per seed, and the true click probability.

Categories lie on a ring. A candidate's logit is ``static + interest``:

* static (`World.static_logits`): bias + quality of the item (part of it follows from its price) + effect of the user's
  segment + effect of the surface; everything a model without history can see;
* interest (`interest`): from the user's clicks, newest first, categories c0, c1, …: past clicks pull their own
  categories with weight decay^rank (recency); the step from c1 to c0 continues: c0 + 2·sign(c0 - c1) is wanted next (ORDER:
  a bag of the same clicks cannot tell); both fade with the time since the newest click (recency in time); a recent
  cart of a category satisfies it for a while.

Position enters the click's logit, and positions are uniformly random within a request. The position-free truth is
therefore the average over the positions of that request, and labels follow it exactly in expectation.
Used by `model.data.synthetic` and `model.data.synthetic_bounds`. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SyntheticConfig:
    """Size, seed and the frozen parameters of the world; figures of different parameters are not comparable."""

    seed: int = 0
    requests: int = 12_000
    users: int = 1_500
    items: int = 400
    min_shown: int = 12
    max_shown: int = 20
    categories: int = 6
    segments: int = 4
    surfaces: int = 3
    days: float = 14.0
    session_requests: float = 4.0  # mean requests per session
    request_gap_s: float = 90.0  # mean time between requests of a session
    user_zipf: float = 0.6
    item_zipf: float = 0.5
    bias: float = -1.9
    quality_price: float = 0.5
    quality_noise: float = 0.5
    segment_effect: float = 0.45
    surface_effect: float = 0.45
    pull: float = 6.0
    decay: float = 0.85
    drift: float = 2.4
    fade_s: float = 6 * 3600.0
    fade_floor: float = 0.6
    satiation: float = 1.2
    cart_share: float = 0.25  # of clicks
    cart_decay: float = 0.6
    position_slope: float = 0.9  # logit lost from the first to the last place
    late_share: float = 0.04  # of events
    late_mean_s: float = 1_800.0
    shards: int = 1  # groups of users, each with random numbers of its own: how a large log is made by several processes


@dataclass(frozen=True)
class World:
    """What is drawn once: items, users and effects."""

    item_category: NDArray[np.int64]  # [I]
    item_price: Floats  # [I]
    item_quality: Floats  # [I]
    item_popularity: Floats  # [I], sums to 1; how often an item is a candidate
    user_segment: NDArray[np.int64]  # [U]
    user_activity: Floats  # [U], sums to 1
    segment_effect: Floats
    surface_effect: Floats

    @classmethod
    def draw(cls, config: SyntheticConfig, rng: np.random.Generator) -> World:
        """A world of the given sizes."""
        price = rng.lognormal(3.0, 0.8, config.items)
        standard = (np.log(price) - 3.0) / 0.8
        return cls(
            item_category=rng.integers(0, config.categories, config.items),
            item_price=price,
            item_quality=-config.quality_price * standard + config.quality_noise * rng.standard_normal(config.items),
            item_popularity=_zipf(config.items, config.item_zipf, rng),
            user_segment=rng.integers(0, config.segments, config.users),
            user_activity=_zipf(config.users, config.user_zipf, rng),
            segment_effect=config.segment_effect * _spread(config.segments),
            surface_effect=config.surface_effect * _spread(config.surfaces),
        )

    def static_logits(self, config: SyntheticConfig, items: NDArray[np.int64], segment: int, surface: int) -> Floats:
        """The part of the logit that does not depend on history, [n]."""
        own = config.bias + self.segment_effect[segment] + self.surface_effect[surface]
        return np.asarray(own + self.item_quality[items], dtype=np.float64)


def interest(config: SyntheticConfig, clicks: NDArray[np.int64], carts: NDArray[np.int64], since_click_s: float) -> Floats:
    """What the history adds to the logit of every category, [categories].

    `clicks` and `carts` are categories, oldest first; `since_click_s` is the age of the newest click.
    """
    count = config.categories
    total = np.zeros(count)
    if len(clicks):
        newest_first = clicks[::-1]
        weight = config.decay ** np.arange(len(newest_first))
        pulled = np.bincount(newest_first, weights=weight / weight.sum(), minlength=count)
        effect = config.pull * (pulled - pulled.mean())
        if len(newest_first) > 1:
            step = drift_step(int(newest_first[0]), int(newest_first[1]), count)
            wanted = np.full(count, -1 / count)
            wanted[(newest_first[0] + 2 * step) % count] += 1
            effect += config.drift * abs(step) * wanted
        total += effect * fade(config, since_click_s)
    if len(carts):
        newest_first = carts[::-1]
        total -= config.satiation * np.minimum(
            1, np.bincount(newest_first, weights=config.cart_decay ** np.arange(len(newest_first)), minlength=count)
        )
    return total


def fade(config: SyntheticConfig, since_click_s: float) -> float:
    """How strongly clicks still act, 1 just after the newest one, `fade_floor` long after."""
    return float(config.fade_floor + (1 - config.fade_floor) * np.exp(-since_click_s / config.fade_s))


def drift_step(newest: int, before: int, count: int) -> int:
    """Direction on the ring from the click before to the newest: -1, 0 (same or opposite) or 1."""
    ahead = (newest - before) % count
    return 0 if ahead in (0, count / 2) else 1 if ahead < count / 2 else -1


def position_logits(config: SyntheticConfig, shown: int) -> Floats:
    """What each of `shown` positions adds to the logit; zero on average."""
    return config.position_slope * (0.5 - np.arange(shown) / max(1, shown - 1))


def position_free(config: SyntheticConfig, logits: Floats, shown: int) -> Floats:
    """Click probability averaged over the `shown` equally likely positions; logits of any shape."""
    places = position_logits(config, shown)
    return np.asarray(sigmoid(logits[..., None] + places).mean(axis=-1), dtype=np.float64)


def sigmoid(x: Floats) -> Floats:
    """The logistic function."""
    return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float64)


def _zipf(count: int, power: float, rng: np.random.Generator) -> Floats:
    weights = np.arange(1, count + 1) ** -power
    return np.asarray(rng.permutation(weights / weights.sum()), dtype=np.float64)


def _spread(count: int) -> Floats:
    return np.linspace(-1, 1, count)
