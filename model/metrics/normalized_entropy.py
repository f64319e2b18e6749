"""Normalized Entropy as an additive state (He et al. 2014), for evaluation and for online NE alike.

Over examples with prediction p and label y: the average log-loss divided by the entropy of the
average label. Lower is better; a constant prediction of the base rate gives exactly 1. The state
holds sums only, so windows, slices and replicas are merged by addition. Log-loss is split as
``-ln(1-p)`` for every example plus ``ln((1-p)/p)`` for the positives, so that a positive that
arrives late is one addition and revises nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CLIP = 1e-7


@dataclass(frozen=True)
class NEState:
    """Sums over examples; `+` merges."""

    examples: float = 0.0
    predictions: float = 0.0
    negative_loss: float = 0.0  # Σ -ln(1-p) over all examples
    positives: float = 0.0
    correction_up: float = 0.0  # Σ max(0, ln((1-p)/p)) over positives
    correction_down: float = 0.0  # Σ max(0, -ln((1-p)/p)) over positives

    def __add__(self, other: NEState) -> NEState:
        return NEState(
            self.examples + other.examples,
            self.predictions + other.predictions,
            self.negative_loss + other.negative_loss,
            self.positives + other.positives,
            self.correction_up + other.correction_up,
            self.correction_down + other.correction_down,
        )

    @classmethod
    def of_impressions(cls, predictions: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> NEState:
        """Impressions shown, not yet known to be positive; predictions [N], `weights` [N] where they stand for several."""
        p = clipped(predictions)
        w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
        return cls(examples=float(w.sum()), predictions=float((w * p).sum()), negative_loss=float(-(w * np.log1p(-p)).sum()))

    @classmethod
    def of_positives(cls, predictions: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> NEState:
        """Positives among impressions that were already counted; predictions [N], their `weights` [N]."""
        p = clipped(predictions)
        w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
        correction = np.log1p(-p) - np.log(p)
        return cls(
            positives=float(w.sum()),
            correction_up=float((w * np.maximum(correction, 0)).sum()),
            correction_down=float((w * np.maximum(-correction, 0)).sum()),
        )

    @classmethod
    def of(
        cls,
        predictions: NDArray[np.floating],
        labels: NDArray[np.integer | np.bool_ | np.floating],
        weights: NDArray[np.floating] | None = None,
    ) -> NEState:
        """Labelled examples; predictions [N], labels [N] in {0, 1}, `weights` [N] where they stand for several."""
        positive = np.asarray(labels) > 0
        of_positives = None if weights is None else np.asarray(weights)[positive]
        return cls.of_impressions(predictions, weights) + cls.of_positives(np.asarray(predictions)[positive], of_positives)

    @property
    def log_loss(self) -> float:
        """Average log-loss in nats; NaN without examples."""
        if not self.examples:
            return math.nan
        return (self.negative_loss + self.correction_up - self.correction_down) / self.examples

    @property
    def base_rate(self) -> float:
        """Average label; NaN without examples."""
        return self.positives / self.examples if self.examples else math.nan

    @property
    def normalized_entropy(self) -> float:
        """Log-loss over the entropy of the base rate; NaN while all labels are equal."""
        rate = self.base_rate
        if not 0 < rate < 1:
            return math.nan
        return self.log_loss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))

    @property
    def calibration(self) -> float:
        """Sum of predictions over sum of labels; NaN without positives."""
        return self.predictions / self.positives if self.positives else math.nan


def clipped(predictions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities kept away from 0 and 1, so that one certain mistake cannot make a log-loss infinite."""
    return np.clip(np.asarray(predictions, dtype=np.float64), _CLIP, 1 - _CLIP)
