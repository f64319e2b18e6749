"""Figures of a finished run on a part of its log: position-free, with the figure that knows positions beside it."""

from __future__ import annotations

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
from model.training.calibration import fit_platt
from model.training.predict import labels_of, predict_logits, with_position
from model.training.run import BEST, TrainingRun


def evaluate_run(run: TrainingRun, log: RequestLog, part: str) -> dict[str, dict[str, Any]]:
    """Per task the figures of `evaluate_predictions`, and `ne_with_position`. `part`: train, validation or test."""
    if not run.result:
        raise ConfigError(f"{run.path}: training has not ended; finish it with `kunlun train … --resume`")
    run.check_data(log)
    model, maker = run.load_model(), BatchMaker(log, run.encoder)
    split = split_requests(log, run.config.split.value)
    requests: NDArray[np.int64] = getattr(split, part)
    logits = predict_logits(model, maker, requests, calibrated=True)
    figures = evaluate_predictions(1 / (1 + np.exp(-logits.astype(np.float64))), log.subset(requests))
    bias = run.load(BEST)[1]["position"]["table"].numpy()
    for task, ne in _ne_with_position(model, maker, bias, split.validation, requests).items():
        figures[task]["ne_with_position"] = ne
    return figures


def _ne_with_position(
    model: KunlunRanker,
    maker: BatchMaker,
    bias: NDArray[np.float32],
    validation: NDArray[np.int64],
    requests: NDArray[np.int64],
) -> dict[str, float]:
    """NE of predictions that know the shown position, which serving does not; calibrated on validation like the others."""

    def logits_and_labels(part: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        raw = predict_logits(model, maker, part, calibrated=False)
        return with_position(raw, bias, maker, part), labels_of(maker, part)

    (fit_logits, fit_labels), (logits, labels) = logits_and_labels(validation), logits_and_labels(requests)
    figures = {}
    for i, task in enumerate(model.schema.tasks):
        c = fit_platt(fit_logits[:, i], fit_labels[:, i])
        known = ~np.isnan(labels[:, i])
        p = 1 / (1 + np.exp(-(c.scale * logits[known, i].astype(np.float64) + c.shift)))
        ne = NEState.of(p, labels[known, i]).normalized_entropy
        if np.isfinite(ne):
            figures[task.name] = ne
    return figures
