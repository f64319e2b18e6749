"""Figures of a finished run on a part of its log: position-free, with the figure that knows positions beside it.

Stated for the full distribution: every shown item of the part is measured with its served probability, also where
training saw a sample, and one of a down-sampled log counts by its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.artifact import Calibration
from model.config import ConfigError
from model.data.request_log import RequestLog
from model.metrics.evaluate import RESAMPLES, Slices, TaskDraws, evaluate_predictions, sliced_draws
from model.metrics.normalized_entropy import NEState
from model.ranker import KunlunRanker
from model.training.batches import BatchMaker
from model.training.calibration import calibrated, fit_platt
from model.training.config import DeviceKind, Precision, split_of
from model.training.device import Compute
from model.training.predict import labels_and_weights, predict_logits, with_position
from model.training.run import BEST, SELECTION, TrainingRun


@dataclass(frozen=True)
class HeldOut:
    """A finished run's served probabilities [C', tasks] on the requests of one part of its log."""

    run: TrainingRun
    log: RequestLog
    part: str
    requests: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    with_position: dict[str, float]
    """Per task the NE of predictions that know the shown position."""

    def figures(self, slices: Slices | None = None) -> dict[str, dict[str, Any]]:
        """Per task those of `evaluate_predictions`, overall and per slice, and ``ne_with_position``."""
        found = evaluate_predictions(self.probabilities, self.log.subset(self.requests), slices=self._own(slices))
        for task, ne in self.with_position.items():
            found[task]["ne_with_position"] = ne
        return found

    def draws(self, slices: Slices | None = None, *, count: int = RESAMPLES) -> dict[str, dict[str, TaskDraws]]:
        """Per task and slice (``*``: all) the figures and their resamples, for comparisons on the same users."""
        part = self.log.subset(self.requests)
        return {
            task.name: sliced_draws(self.probabilities[:, i], part, i, self._own(slices), count=count)
            for i, task in enumerate(self.log.schema.tasks)
        }

    def _own(self, slices: Slices | None) -> dict[str, NDArray[np.int64]]:
        """Slices of the log as numbers within the part; those without requests in it are left out."""
        place = np.full(len(self.log), -1, np.int64)
        place[self.requests] = np.arange(len(self.requests))
        own = {name: place[numbers][place[numbers] >= 0] for name, numbers in (slices or {}).items()}
        return {name: numbers for name, numbers in own.items() if len(numbers)}


def evaluate_run(run: TrainingRun, log: RequestLog, part: str, slices: Slices | None = None) -> dict[str, dict[str, Any]]:
    """Figures of `predict_held_out`, overall and per slice of the log. `part`: train, validation or test."""
    return predict_held_out(run, log, part).figures(slices)


def predict_held_out(run: TrainingRun, log: RequestLog, part: str) -> HeldOut:
    """Served probabilities of a part; raises `ConfigError` for unfinished runs and for a log it was not trained on."""
    if not run.result:
        raise ConfigError(f"{run.path}: training has not ended; finish it with `kunlun train … --resume`")
    run.check_data(log)
    if run.config.refit_on_validation and part == "validation":
        raise ConfigError(f"{run.path}: was refitted on the validation part; measure {run.path / SELECTION} on it")
    device = DeviceKind.CPU if run.config.device is DeviceKind.CPU else DeviceKind.AUTO
    model = run.load_model().to(Compute.resolve(device, Precision.F32).device)
    maker = BatchMaker(log, run.encoder)
    split = split_of(run.config, log)
    requests: NDArray[np.int64] = getattr(split, part)
    logits = predict_logits(model, maker, requests, calibrated=True)
    bias = run.load(BEST)[1]["position"]["table"].numpy()
    with_position = _ne_with_position(run, model, maker, bias, split.validation, requests)
    return HeldOut(run, log, part, requests, 1 / (1 + np.exp(-logits.astype(np.float64))), with_position)


def _ne_with_position(
    run: TrainingRun,
    model: KunlunRanker,
    maker: BatchMaker,
    bias: NDArray[np.float32],
    validation: NDArray[np.int64],
    requests: NDArray[np.int64],
) -> dict[str, float]:
    """NE of predictions that know the shown position, which serving does not.

    Calibrated on validation like the others; a refit, which has trained on that, keeps the line that it serves with.
    """

    def logits_of(part: NDArray[np.int64]) -> NDArray[np.float32]:
        return with_position(predict_logits(model, maker, part, calibrated=False), bias, maker, part)

    lines = {task: Calibration(**c) for task, c in run.result["calibration"].items()}
    if not run.config.refit_on_validation:
        fit_logits, (known, stands_for) = logits_of(validation), labels_and_weights(maker, validation)
        lines = {
            task: fit_platt(fit_logits[:, i], known[:, i], stands_for, negative_rate=line.negative_rate)
            for i, (task, line) in enumerate(lines.items())
        }
    logits, (labels, weights) = logits_of(requests), labels_and_weights(maker, requests)
    figures = {}
    for i, (task, line) in enumerate(lines.items()):
        is_known = ~np.isnan(labels[:, i])
        p = calibrated(logits[is_known, i], line)
        ne = NEState.of(p, labels[is_known, i], weights[is_known]).normalized_entropy
        if np.isfinite(ne):
            figures[task] = ne
    return figures
