"""Platt calibration on held-out data: scale and shift of the logit, by Newton's method. Part of the served graph.

Held-out data stands for the full distribution, which is what is served, also when training saw a sample of the
negatives. The offset of the sample, ln(negative_rate), is known and is no part of the fit: scale and shift are what
remains to be corrected with it in place, and a fit that falls back to the identity still has it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from model.artifact import Calibration


def fit_platt(
    logits: NDArray[np.float32],
    labels: NDArray[np.float32],
    weights: NDArray[np.float64] | None = None,
    *,
    negative_rate: float = 1.0,
    steps: int = 50,
) -> Calibration:
    """Minimise the log-loss of sigmoid(scale · logit + shift + ln(negative_rate)); logits and labels [N], NaN labels left out.

    `weights` [N]: how many examples of the full distribution each one stands for (1 unless given). `negative_rate`: share
    of the task's negatives that the model was trained on.

    Newton with a line search: undamped steps overshoot on over-confident logits. Falls back to the
    identity when one class is missing, or when the fit is no better or turns the order round.
    """
    known = ~np.isnan(labels)
    x, y = logits[known].astype(np.float64), labels[known].astype(np.float64)
    w = np.ones_like(y) if weights is None else weights[known]
    uncorrected, offset = Calibration(negative_rate=negative_rate), math.log(negative_rate)
    if not 0 < y.sum() < len(y):
        return uncorrected
    design = np.stack([x, np.ones_like(x)], axis=1)

    def loss(line: NDArray[np.float64]) -> float:
        z = design @ line + offset
        return float(w @ (np.logaddexp(0, z) - y * z))

    line = np.array([1.0, 0.0])
    identity = current = loss(line)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(design @ line + offset, -40, 40)))
        gradient = design.T @ (w * (p - y))
        hessian = (design * (w * p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        move = np.linalg.solve(hessian, gradient)
        share = 1.0
        while loss(line - share * move) > current - 1e-4 * share * (gradient @ move) and share > 1e-10:
            share /= 2
        line = line - share * move
        current = loss(line)
        if np.abs(share * move).max() < 1e-9:
            break
    if not np.all(np.isfinite(line)) or line[0] <= 0 or not current <= identity:
        return uncorrected
    return Calibration(scale=float(line[0]), shift=float(line[1]), negative_rate=negative_rate)


def calibrated(logits: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float64]:
    """Probabilities [N] of raw logits [N], in float64; what the served graph computes in float32."""
    z = calibration.scale * logits.astype(np.float64) + calibration.shift + math.log(calibration.negative_rate)
    return np.asarray(1 / (1 + np.exp(-z)), dtype=np.float64)
