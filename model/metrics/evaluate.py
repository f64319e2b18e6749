"""Figures of predictions on a request log, each with a 95 % bootstrap interval over users, overall and per slice.

`evaluate_predictions` is what `kunlun evaluate`, the demo and benchmarks report; `task_draws` gives the raw resamples, so
that two models can be compared pairwise on the same users (`model.metrics.comparison`). Sums are kept in `EvaluationState`,
which this module builds from a log and draws from.

Invariant: examples with an unknown label are left out; a figure without a value (one class only, no positive) is left
out of the result, so that it is always valid JSON. Figures are stated for the full distribution: of a log that was
down-sampled, examples count by `RequestLog.weights`. Cost: about 1 s for 50,000 examples and 300 resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.request_log import RequestLog
from model.metrics.bootstrap import Interval, interval, resamples
from model.metrics.evaluation_state import EvaluationState

RESAMPLES = 300
ALL = "*"
"""Name of all slices together, as in the online metrics."""

Slices = Mapping[str, NDArray[np.int64]]
"""Requests of a log by the name of their slice."""


@dataclass(frozen=True)
class TaskDraws:
    """One task's figures and their values in every resample, by name; and what they were computed over."""

    values: dict[str, float]
    draws: dict[str, NDArray[np.float64]]
    examples: int
    users: int
    requests: int

    def intervals(self) -> dict[str, Interval]:
        """The defined figures with their intervals."""
        return {n: interval(v, self.draws[n]) for n, v in self.values.items() if math.isfinite(v)}

    def to_json(self) -> dict[str, Any]:
        """Counts, and per defined figure ``{"value", "low", "high"}``."""
        figures = {name: asdict(i) for name, i in self.intervals().items()}
        return {"examples": self.examples, "users": self.users, "requests": self.requests, **figures}


def evaluate_predictions(
    predictions: NDArray[np.floating], log: RequestLog, *, count: int = RESAMPLES, seed: int = 0, slices: Slices | None = None
) -> dict[str, dict[str, Any]]:
    """Per task: ``examples``, ``users``, ``requests``, and per figure ``{"value", "low", "high"}``.

    Predictions [C, tasks] are probabilities in the order of the log's shown items. Figures: those of
    `model.metrics.evaluation_state.FIGURES`; ndcg10 and mrr are left out of a down-sampled log, whose lists are not whole,
    and ne_bayes of logs without true probabilities. With `slices`, ``slices`` holds the same per slice.
    """
    result: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(log.schema.tasks):
        drawn = sliced_draws(predictions[:, number], log, number, slices or {}, count=count, seed=seed)
        result[task.name] = drawn.pop(ALL).to_json()
        if drawn:
            result[task.name]["slices"] = {name: own.to_json() for name, own in drawn.items()}
    return result


def task_draws(
    predictions: NDArray[np.floating], log: RequestLog, task: int = 0, *, count: int = RESAMPLES, seed: int = 0
) -> TaskDraws:
    """Figures of one task's predictions [C] and their values in `count` resamples of the log's users."""
    return sliced_draws(predictions, log, task, {}, count=count, seed=seed)[ALL]


def sliced_draws(
    predictions: NDArray[np.floating],
    log: RequestLog,
    task: int,
    slices: Slices,
    *,
    count: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, TaskDraws]:
    """`task_draws` of the whole log (``*``) and of every slice, all from the same resamples of the same users."""
    if len(predictions) != len(log.item_index):
        raise ValueError(f"predictions: expected one row per shown item ({len(log.item_index):,}), found {len(predictions):,}")
    users = np.unique(log.user_index)
    drawn = np.concatenate([np.ones((1, len(users))), resamples(len(users), count, seed)])  # row 0 is the log itself
    found = {}
    for name, requests in {ALL: np.arange(len(log)), **slices}.items():
        state = evaluation_state(predictions, log, task, requests)
        figures = state.figures(drawn[:, np.searchsorted(users, state.users)]) if state.rows else {}
        found[name] = TaskDraws(
            {figure: float(values[0]) for figure, values in figures.items()},
            {figure: values[1:] for figure, values in figures.items()},
            state.rows,
            len(state.users),
            state.requests,
        )
    return found


def evaluation_state(
    predictions: NDArray[np.floating], log: RequestLog, task: int = 0, requests: NDArray[np.int64] | None = None
) -> EvaluationState:
    """The additive state of one task's predictions [C] over the given requests (default: all).

    Users are keyed by their index, which all subsets of a log share: states of parts of one log may be added.
    """
    chosen = np.arange(len(log)) if requests is None else requests
    rows = log.rows_of(chosen)
    return EvaluationState.of(
        predictions[rows],
        log.labels[rows, task],
        log.user_index[chosen],
        np.concatenate([[0], np.cumsum(log.offsets[chosen + 1] - log.offsets[chosen])]),
        weights=log.weights()[rows],
        truth=None if log.truth is None else log.truth[rows, task],
        whole_lists=log.negative_rate == 1,
    )
