"""Relative NE gain of one model over another, with an interval over users and, where there are several, over seeds.

    gain = (NE_other - NE_model) / NE_other · 100 %      positive: better; equal to the relative gain in log-loss

Both are measured on the same users: a resample draws users with replacement, and where a model was trained with several
seeds also seeds with replacement, and both models are put together from the same users. Called by `kunlun evaluate
--against` and by the checks. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.metrics.bootstrap import Interval, interval
from model.metrics.evaluate import TaskDraws

NE = "ne"


def mean_over_seeds(runs: Sequence[TaskDraws], figure: str = NE, seed: int = 0) -> tuple[float, NDArray[np.float64]]:
    """The mean of a figure over runs of one model, and its resamples [B] over users and runs.

    All runs must come from the same resamples. With one run the spread between seeds is unknown and left out; of S runs,
    resampling shows (S - 1) / S of the variance between seeds.
    """
    draws = np.stack([run.draws[figure] for run in runs])  # [S, B]
    chosen = np.random.default_rng([seed, len(runs)]).integers(0, len(runs), draws.shape)
    return float(np.mean([run.values[figure] for run in runs])), np.take_along_axis(draws, chosen, axis=0).mean(axis=0)


def relative_gain(runs: Sequence[TaskDraws], others: Sequence[TaskDraws], figure: str = NE) -> Interval:
    """Relative gain in per cent of `runs` (seeds of one model) over `others` in a figure that is better when lower.

    Seeds of the two models are drawn independently of each other: they share users, not initialisations.
    """
    value, draws = mean_over_seeds(runs, figure, seed=1)
    other, other_draws = mean_over_seeds(others, figure, seed=2)
    return interval(100 * (other - value) / other, 100 * (other_draws - draws) / other_draws)


def gains_by_slice(
    runs: Sequence[Mapping[str, TaskDraws]], others: Sequence[Mapping[str, TaskDraws]]
) -> dict[str, dict[str, Any]]:
    """`relative_gain` of every slice in which both have an NE, as ``{"value", "low", "high"}``, the whole (``*``) first."""
    found = {}
    for name in runs[0]:
        own, theirs = [run[name] for run in runs], [run[name] for run in others]
        if all(np.isfinite(run.values.get(NE, np.nan)) for run in [*own, *theirs]):
            found[name] = asdict(relative_gain(own, theirs))
    return found
