"""The training loop: seeded, resumable, with progress, validation NE and the best checkpoint kept.

Randomness is a function of (seed, epoch, step), never of what ran before, so a resumed run
continues with the same batches and the same noise. The learning rate is a function of the step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.layers.dropout import set_hidden_dropout
from model.layers.embedding import InputDropout
from model.metrics.normalized_entropy import NEState
from model.ranker import KunlunRanker
from model.training.averaging import WeightAverage
from model.training.batches import BatchMaker, batch_order
from model.training.calibration import calibrated, fit_platt
from model.training.config import AugmentConfig, OptimizerConfig
from model.training.device import Compute
from model.training.forward import PositionBias, masked_bce, raw_logits
from model.training.negative_sampling import sample_negatives
from model.training.optimizers import Optimizers
from model.training.predict import labels_and_weights, predict_logits
from model.training.references import golden_batch, popularity_prior, score_references
from model.training.run import BEST, CHECKPOINT, SCORE_REFERENCE, TrainingRun, write_json

CHECKPOINT_EVERY_S = 30.0


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Progress:
    """What the loop reports after every step."""

    epoch: int
    step: int
    total_steps: int
    loss: float
    examples_per_s: float
    requests_per_s: float


class Trainer:
    """Owns model, optimizers and the run directory during training."""

    def __init__(self, run: TrainingRun, log: RequestLog, train: NDArray[np.int64], validation: NDArray[np.int64]) -> None:
        has_items = np.diff(log.offsets) > 0  # a down-sampled log may hold requests without any
        validation = validation[has_items[validation]]
        if not len(validation):
            raise ConfigError(
                f"split {run.config.split.value!r}: the validation part is empty, and the best step is chosen on it; "
                "use another split or more data"
            )
        self.run, self.config = run, run.config
        self.maker = BatchMaker(log, run.encoder)
        self.sample = sample_negatives(log, train, self.config)
        self.train_requests, self.validation_requests = train, validation
        torch.manual_seed(self.config.seed)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.compute = Compute.resolve(self.config.device, self.config.precision)
        device, tasks = self.compute.device, run.schema.tasks
        self.model = run.new_model().to(device)  # drawn on the host, so the same on every device
        self.position_bias = PositionBias(len(tasks)).to(device)
        self.task_weights = torch.tensor([t.weight for t in tasks], device=device)
        self.dropout = _input_dropout(self.model, self.config.augment)
        self.steps_per_epoch = math.ceil(len(self.sample.requests) / self.config.batch_requests)
        self.total_steps = self.steps_per_epoch * self.config.epochs
        self.optimizers = Optimizers(self.model, self.position_bias, self.config.optimizer, self.total_steps)
        self.average = _average(self.model, self.position_bias, self.config.optimizer)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best_ne": None, "worse": 0, "stopped": ""}

    def resume(self) -> None:
        """Continue from the newest checkpoint."""
        self.state, groups = self.run.load(CHECKPOINT)
        self.model.load_state_dict(groups["model"])
        self.position_bias.load_state_dict(groups["position"])
        self.optimizers.restore(groups)
        if self.average is not None:
            self.average.restore(groups)

    def fit(self, report: Callable[[Progress], None], evaluated: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Train to the end (or to `patience`, or `max_seconds`); returns and stores the result."""
        saved_at = time.monotonic()
        every = max(1, self.steps_per_epoch // self.config.evaluations_per_epoch)
        while self.state["step"] < self.total_steps and not self.state["stopped"]:
            epoch, first = divmod(self.state["step"], self.steps_per_epoch)
            order = batch_order(
                self.sample.requests, self.config.batch_requests, np.random.default_rng([self.config.seed, epoch])
            )
            for number, requests in enumerate(order):
                if number < first:
                    continue
                report(self._step(epoch, requests))
                at_end = self.state["step"] % self.steps_per_epoch == 0
                if at_end or (self.state["step"] % every == 0 and self.steps_per_epoch - number > every // 2):
                    evaluated(self._evaluate(epoch))
                if self.config.max_seconds is not None and self.state["seconds"] >= self.config.max_seconds:
                    self.state["stopped"] = "max_seconds"
                if self.state["stopped"] or time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                    self._checkpoint()
                    saved_at = time.monotonic()
                if self.state["stopped"]:
                    break
        return self._finish()

    def _step(self, epoch: int, requests: NDArray[np.int64]) -> Progress:
        began = time.perf_counter()
        step = self.state["step"]
        torch.manual_seed((self.config.seed << 32) + step)
        self.model.train()
        augment = self.config.augment
        noise = np.random.default_rng([self.config.seed, epoch, step])
        batch = self.maker.batch(requests, augment, noise, self.sample.kept).to(self.compute.device)
        with self.compute.autocast():
            logits = raw_logits(self.model, batch, self.dropout).float()
        if self.config.position_debias:
            logits = logits + self.position_bias(batch.positions)
        loss = masked_bce(logits, batch.labels, self.task_weights)
        found = loss.item()  # the one place where a step waits for the device
        if not math.isfinite(found):
            raise TrainingDiverged(f"the loss is {found} at step {step}; train again with a lower dense_lr or sparse_lr")
        self.optimizers.zero_grad()
        loss.backward()
        self.optimizers.clip()
        if self.average is not None:
            self.average.before_step()
        self.optimizers.step(step)
        if self.average is not None:
            self.average.after_step()
        spent = time.perf_counter() - began
        self.state["step"] = step + 1
        self.state["seconds"] += spent
        return Progress(epoch, step + 1, self.total_steps, found, batch.candidates / spent, batch.requests / spent)

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        with nullcontext() if self.average is None else self.average.swapped_in():
            return self._evaluate_weights(epoch)

    def _evaluate_weights(self, epoch: int) -> dict[str, Any]:
        logits = predict_logits(self.model, self.maker, self.validation_requests, calibrated=False)
        labels, weights = labels_and_weights(self.maker, self.validation_requests)
        ne = _mean_ne(logits, labels, weights, self.sample.shares)
        line = {"step": self.state["step"], "epoch": epoch, "seconds": round(self.state["seconds"], 2), "validation_ne": ne}
        with (self.run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.state["best_ne"] is None or ne < self.state["best_ne"]:
            self.state |= {"best_ne": ne, "worse": 0}
            self.run.save(BEST, line, self._weights())
        else:
            self.state["worse"] += 1
            if self.config.patience is not None and self.state["worse"] >= self.config.patience:
                self.state["stopped"] = "patience"
        return line

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        return {"model": self.model.state_dict(), "position": self.position_bias.state_dict()}

    def _checkpoint(self) -> None:
        groups = self._weights() | self.optimizers.tensors()
        if self.average is not None:
            groups |= self.average.tensors()
        self.run.save(CHECKPOINT, self.state, groups)

    def _finish(self) -> dict[str, Any]:
        if self.state["best_ne"] is None:
            self._evaluate(self.state["step"] // self.steps_per_epoch)
        self._checkpoint()
        best_state, groups = self.run.load(BEST)
        model = self.model
        model.load_state_dict(groups["model"])
        self.position_bias.load_state_dict(groups["position"])
        logits = predict_logits(model, self.maker, self.validation_requests, calibrated=False)
        labels, weights = labels_and_weights(self.maker, self.validation_requests)
        calibrations = {
            task.name: fit_platt(logits[:, i], labels[:, i], weights, negative_rate=float(self.sample.shares[i]))
            for i, task in enumerate(self.run.schema.tasks)
        }
        model.score_candidates.calibrate(list(calibrations.values()))
        self.run.save(BEST, best_state, self._weights())
        prior = popularity_prior(self.maker.log, self.train_requests)
        self.run.save_arrays("prior", prior)
        probabilities = model.cpu().score_candidates.calibrated(torch.from_numpy(logits)).sigmoid().numpy()
        references = score_references(self.run.schema, probabilities, labels, weights)
        write_json(self.run.path / SCORE_REFERENCE, {task: r.model_dump() for task, r in references.items()})
        (self.run.path / "evaluation.json").unlink(missing_ok=True)  # of an earlier state of this run
        self.run.save_arrays("golden", golden_batch(model, self.maker, self.validation_requests))
        result = {
            "steps": self.state["step"],
            "seconds": round(self.state["seconds"], 2),
            "stopped": self.state["stopped"] or "epochs",
            "best": best_state,
            "calibration": {k: c.model_dump() for k, c in calibrations.items()},
            "parameters": sum(p.numel() for p in model.parameters()),
            "base_rates": {t.name: float(r) for t, r in zip(self.run.schema.tasks, prior["default"], strict=True)},
        }
        write_json(self.run.path / "result.json", result)
        return result


def _mean_ne(
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


def _input_dropout(model: KunlunRanker, augment: AugmentConfig) -> InputDropout:
    """The rates of every table; raises `ConfigError` for a rate of something that is not there."""
    tables = model.tables.names
    for name in augment.table_id_dropout:
        if name not in tables:
            raise ConfigError(
                f"augment.table_id_dropout: expected names of embedding tables ({', '.join(tables)}), found {name!r}"
            )
    if not set_hidden_dropout(model, augment.hidden_dropout) and augment.hidden_dropout:
        raise ConfigError("augment.hidden_dropout: expected 0, as this architecture has no place for it; found another rate")
    return InputDropout(
        {name: augment.table_id_dropout.get(name, augment.id_dropout) for name in tables}, augment.embedding_dropout
    )


def _average(model: KunlunRanker, position_bias: PositionBias, config: OptimizerConfig) -> WeightAverage | None:
    if config.average_decay is None:
        return None
    tables = {f"tables.{name}": model.tables.weight(name) for name in model.tables.names}
    owned = {id(p) for p in tables.values()}
    named = [*model.named_parameters(prefix="model"), *position_bias.named_parameters(prefix="position")]
    return WeightAverage({name: p for name, p in named if id(p) not in owned}, tables, config.average_decay)
