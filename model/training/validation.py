"""The figure by which a run chooses its best step."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from model.metrics.normalized_entropy import NEState
from model.training.calibration import calibrated, fit_platt


def mean_ne(
    logits: NDArray[np.float32],
    labels: NDArray[np.float32],
    weights: NDArray[np.float64],
    negative_rates: NDArray[np.float64],
) -> float:
    """Mean NE over tasks after a Platt fit on the same data, so that the choice of the best step is not one of offsets.

    Logits and labels [C, tasks], weights [C] of the full distribution, share of each task's negatives trained on [tasks].
    Tasks whose labels are all equal have no NE and are left out; if no task has one, the mean log-loss stands in.
    """
    figures, losses = [], []
    for task in range(labels.shape[1]):
        known = ~np.isnan(labels[:, task])
        x, y, w = logits[known, task], labels[known, task], weights[known]
        c = fit_platt(x, y, w, negative_rate=float(negative_rates[task]))
        state = NEState.of(calibrated(x, c), y, w)
        figures.append(state.normalized_entropy)
        losses.append(state.log_loss)
    defined = [f for f in figures if math.isfinite(f)] or [f for f in losses if math.isfinite(f)]
    return float(np.mean(defined)) if defined else 0.0
