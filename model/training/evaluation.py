"""Figures of a finished run on a part of its log: position-free, with the figure that knows positions beside it.

Stated for the full distribution: every shown item of the part is measured with its served probability, also where
training saw a sample, and one of a down-sampled log counts by its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.data.split import split_requests
from model.metrics.evaluate import evaluate_predictions
from model.metrics.normalized_entropy import NEState
from model.ranker import KunlunRanker
from model.training.batches import BatchMaker
from model.training.calibration import calibrated, fit_platt
from model.training.config import DeviceKind, Precision
from model.training.device import Compute
from model.training.predict import labels_and_weights, predict_logits, with_position
from model.training.run import BEST, TrainingRun


def evaluate_run(run: TrainingRun, log: RequestLog, part: str) -> dict[str, dict[str, Any]]:
    """Per task the figures of `evaluate_predictions`, and `ne_with_position`. `part`: train, validation or test."""
    if not run.result:
        raise ConfigError(f"{run.path}: training has not ended; finish it with `kunlun train … --resume`")
    run.check_data(log)
    device = DeviceKind.CPU if run.config.device is DeviceKind.CPU else DeviceKind.AUTO
    model = run.load_model().to(Compute.resolve(device, Precision.F32).device)
    maker = BatchMaker(log, run.encoder)
    split = split_requests(log, run.config.split.value)
    requests: NDArray[np.int64] = getattr(split, part)
    logits = predict_logits(model, maker, requests, calibrated=True)
    figures = evaluate_predictions(1 / (1 + np.exp(-logits.astype(np.float64))), log.subset(requests))
    bias = run.load(BEST)[1]["position"]["table"].numpy()
    rates = {task: c["negative_rate"] for task, c in run.result["calibration"].items()}
    for task, ne in _ne_with_position(model, maker, bias, rates, split.validation, requests).items():
        figures[task]["ne_with_position"] = ne
    return figures


def _ne_with_position(
    model: KunlunRanker,
    maker: BatchMaker,
    bias: NDArray[np.float32],
    negative_rates: Mapping[str, float],
    validation: NDArray[np.int64],
    requests: NDArray[np.int64],
) -> dict[str, float]:
    """NE of predictions that know the shown position, which serving does not; calibrated on validation like the others."""

    def logits_of(part: NDArray[np.int64]) -> NDArray[np.float32]:
        return with_position(predict_logits(model, maker, part, calibrated=False), bias, maker, part)

    fit_logits, (fit_labels, fit_weights) = logits_of(validation), labels_and_weights(maker, validation)
    logits, (labels, weights) = logits_of(requests), labels_and_weights(maker, requests)
    figures = {}
    for i, task in enumerate(model.schema.tasks):
        c = fit_platt(fit_logits[:, i], fit_labels[:, i], fit_weights, negative_rate=negative_rates[task.name])
        known = ~np.isnan(labels[:, i])
        ne = NEState.of(calibrated(logits[known, i], c), labels[known, i], weights[known]).normalized_entropy
        if np.isfinite(ne):
            figures[task.name] = ne
    return figures
