"""The paired verdict on a canary: is its NE worse than the live model's on the very same impressions?

Both models predict every impression, so what differs between them is not the users, items or labels but the models:
the log-losses are compared impression by impression, and their difference varies far less than either loss. An
observation is one served list, since impressions of one list are not independent; a list counts by its impressions
(a ratio estimator, linearised).

The interval is an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Annals of
Statistics 2024, arXiv:2103.06476, Theorem 2.2): it holds at all times at once, so one may look after every outcome and
stop at the first verdict, and the chance of ever calling equal models unequal stays below `alpha`.

State is sums only, so windows, replicas and days are merged by addition. Torch-free; numpy only. Cost: one pass over
the impressions; a verdict is a handful of scalar operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from model.metrics.normalized_entropy import clipped

LEAST_LISTS = 200
"""The interval rests on a central limit theorem; before as many lists there is none."""


class Verdict(StrEnum):
    """What is known of the canary."""

    UNDECIDED = "undecided"
    WORSE = "worse"
    BETTER = "better"


@dataclass(frozen=True)
class NEDifference:
    """NE of the canary - NE of the live model, with bounds that hold at all times; NaN while nothing is known."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Decided once the bounds exclude 0."""
        if self.low > 0:
            return Verdict.WORSE
        return Verdict.BETTER if self.high < 0 else Verdict.UNDECIDED


@dataclass(frozen=True)
class PairedNE:
    """Sums over served lists; `+` merges. Of one list, n impressions and D the summed difference of log-losses."""

    lists: float = 0.0
    examples: float = 0.0
    positives: float = 0.0
    difference: float = 0.0  # Σ D
    difference_squared: float = 0.0  # Σ D²
    difference_examples: float = 0.0  # Σ D · n
    examples_squared: float = 0.0  # Σ n²

    def __add__(self, other: PairedNE) -> PairedNE:
        return PairedNE(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @classmethod
    def of(
        cls,
        live: NDArray[np.floating],
        canary: NDArray[np.floating],
        labels: NDArray[np.integer | np.bool_ | np.floating],
        lists: NDArray[np.integer],
    ) -> PairedNE:
        """Impressions whose labels are final: predictions of both models [N], labels [N] in {0, 1}, list numbers [N]."""
        a, b, y = clipped(live), clipped(canary), np.asarray(labels, dtype=np.float64)
        gap = y * (np.log(a) - np.log(b)) + (1 - y) * (np.log1p(-a) - np.log1p(-b))
        _, number = np.unique(lists, return_inverse=True)
        d, n = np.bincount(number, gap), np.bincount(number).astype(np.float64)
        return cls(
            lists=float(len(n)),
            examples=float(len(y)),
            positives=float(y.sum()),
            difference=float(d.sum()),
            difference_squared=float(d @ d),
            difference_examples=float(d @ n),
            examples_squared=float(n @ n),
        )

    def ne_difference(self, alpha: float = 0.01, tightest_at: float = 10_000) -> NEDifference:
        """Difference of NE with a (1 - alpha) confidence sequence, tightest at `tightest_at` lists.

        The entropy of the base rate, which turns log-loss into NE, is the same for both models and taken as it is.
        """
        rate = self.positives / self.examples if self.examples else 0.0
        if not 0 < rate < 1:
            return NEDifference(math.nan, math.nan, math.nan)
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
        per_example = self.difference / self.examples
        value = per_example / entropy
        if self.lists < LEAST_LISTS:
            return NEDifference(value, math.nan, math.nan)
        residual = self.difference_squared - 2 * per_example * self.difference_examples + per_example**2 * self.examples_squared
        deviation = math.sqrt(max(residual, 0.0) / self.lists) / (self.examples / self.lists)
        reach = deviation * width(self.lists, alpha, tightest_at) / entropy
        return NEDifference(value, value - reach, value + reach)


def width(count: float, alpha: float, tightest_at: float) -> float:
    """Half-width, in standard deviations of one observation, of the confidence sequence of a mean after `count` of them."""
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / tightest_at  # ρ²
    scaled = count * rho + 1
    return math.sqrt(2 * scaled / (count**2 * rho) * math.log(math.sqrt(scaled) / alpha))
