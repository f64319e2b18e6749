"""Platt calibration on held-out data: scale and shift of the logit, by Newton's method. Part of the served graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.artifact import Calibration


def fit_platt(logits: NDArray[np.float32], labels: NDArray[np.float32], steps: int = 25) -> Calibration:
    """Minimise the log-loss of sigmoid(scale · logit + shift); logits and labels [N], NaN labels left out.

    Falls back to the identity when one class is missing or the scale would turn negative.
    """
    known = ~np.isnan(labels)
    x, y = logits[known].astype(np.float64), labels[known].astype(np.float64)
    if not 0 < y.sum() < len(y):
        return Calibration()
    design = np.stack([x, np.ones_like(x)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -40, 40)))
        gradient = design.T @ (p - y)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        move = np.linalg.solve(hessian, gradient)
        weights -= move
        if np.abs(move).max() < 1e-9:
            break
    if not np.all(np.isfinite(weights)) or weights[0] <= 0:
        return Calibration()
    return Calibration(scale=float(weights[0]), shift=float(weights[1]))
