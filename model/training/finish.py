"""The end of a run: calibration, and everything that export and serving need beside the weights.

Calibration is fitted on the validation part. A refit has seen that part, so it takes the calibration, and the reference of
scores, of the run that selected its length: there the part was held out, from a model of the same configuration.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.artifact import Calibration
from model.ranker import KunlunRanker
from model.training.batches import BatchMaker
from model.training.calibration import fit_platt
from model.training.config import RefitLength, TrainConfig
from model.training.predict import labels_and_weights, predict_logits
from model.training.references import golden_batch, popularity_prior, score_references
from model.training.run import SCORE_REFERENCE, TrainingRun, write_json


@dataclass(frozen=True)
class Selection:
    """A finished run that chose how long to train, for a refit on training and validation part."""

    run: TrainingRun

    def steps(self, batches: int, config: TrainConfig) -> tuple[int, int]:
        """Steps of the refit, and steps that its learning rate is planned for, with `batches` per pass over its data."""
        chosen, found = self.run.result, self.run.result["best"]["step"]
        if config.refit_length is RefitLength.STEPS:
            return found, chosen["planned_steps"]
        return max(1, round(found * batches / chosen["steps_per_epoch"])), batches * config.epochs


@dataclass(frozen=True)
class Parts:
    """What a run's end needs of its data: training and held-out requests, share kept of each task's negatives [tasks]."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    shares: NDArray[np.float64]


def calibrate(
    run: TrainingRun, model: KunlunRanker, maker: BatchMaker, parts: Parts, selection: Selection | None
) -> dict[str, Calibration]:
    """Set the model's calibration, write the reference of scores; returns the calibration by task."""
    if selection is not None:
        given = selection.run.result["calibration"]
        found = {
            task.name: Calibration(**given[task.name] | {"negative_rate": float(share)})
            for task, share in zip(run.schema.tasks, parts.shares, strict=True)
        }
        model.score_candidates.calibrate(list(found.values()))
        shutil.copyfile(selection.run.path / SCORE_REFERENCE, run.path / SCORE_REFERENCE)
        return found
    logits = predict_logits(model, maker, parts.held_out, calibrated=False)
    labels, weights = labels_and_weights(maker, parts.held_out)
    found = {
        task.name: fit_platt(logits[:, i], labels[:, i], weights, negative_rate=float(parts.shares[i]))
        for i, task in enumerate(run.schema.tasks)
    }
    score = model.score_candidates
    score.calibrate(list(found.values()))
    raw = torch.from_numpy(logits).to(score.calibration_scale.device)
    references = score_references(run.schema, score.calibrated(raw).sigmoid().cpu().numpy(), labels, weights)
    write_json(run.path / SCORE_REFERENCE, {task: r.model_dump() for task, r in references.items()})
    return found


def write_references(run: TrainingRun, model: KunlunRanker, maker: BatchMaker, parts: Parts) -> dict[str, Any]:
    """Popularity prior and golden batch, of a calibrated model on the CPU; returns base rates and the number of parameters."""
    (run.path / "evaluation.json").unlink(missing_ok=True)  # of an earlier state of this run
    prior = popularity_prior(maker.log, parts.train)
    run.save_arrays("prior", prior)
    run.save_arrays("golden", golden_batch(model, maker, parts.held_out))
    rates = {t.name: float(r) for t, r in zip(run.schema.tasks, prior["default"], strict=True)}
    return {"parameters": sum(p.numel() for p in model.parameters()), "base_rates": rates}
