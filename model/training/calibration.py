"""Platt calibration on held-out data: scale and shift of the logit, by Newton's method. Part of the served graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.artifact import Calibration


def fit_platt(logits: NDArray[np.float32], labels: NDArray[np.float32], steps: int = 50) -> Calibration:
    """Minimise the log-loss of sigmoid(scale · logit + shift); logits and labels [N], NaN labels left out.

    Newton with a line search: undamped steps overshoot on over-confident logits. Falls back to the
    identity when one class is missing, or when the fit is no better or turns the order round.
    """
    known = ~np.isnan(labels)
    x, y = logits[known].astype(np.float64), labels[known].astype(np.float64)
    if not 0 < y.sum() < len(y):
        return Calibration()
    design = np.stack([x, np.ones_like(x)], axis=1)

    def loss(w: NDArray[np.float64]) -> float:
        z = design @ w
        return float(np.logaddexp(0, z).sum() - y @ z)

    weights = np.array([1.0, 0.0])
    identity = current = loss(weights)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -40, 40)))
        gradient = design.T @ (p - y)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        move = np.linalg.solve(hessian, gradient)
        share = 1.0
        while loss(weights - share * move) > current - 1e-4 * share * (gradient @ move) and share > 1e-10:
            share /= 2
        weights = weights - share * move
        current = loss(weights)
        if np.abs(share * move).max() < 1e-9:
            break
    if not np.all(np.isfinite(weights)) or weights[0] <= 0 or not current <= identity:
        return Calibration()
    return Calibration(scale=float(weights[0]), shift=float(weights[1]))
