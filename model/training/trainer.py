"""The training loop: seeded, resumable, with progress, alarms, validation NE and the best checkpoint kept.

Randomness is a function of (seed, epoch, step), never of what ran before or of how far batches are prefetched, so a resumed
run continues with the same batches and the same noise. The learning rate is a function of the step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.flops import flop_model
from model.training.alarms import TrainingDiverged, describe_step
from model.training.batches import Batch, BatchMaker
from model.training.config import OnNaN
from model.training.device import Compute
from model.training.finish import Parts, Selection, calibrate, write_references
from model.training.learner import Learner
from model.training.negative_sampling import sample_negatives
from model.training.peak import peak_flops
from model.training.plan import BatchPlan, evaluations
from model.training.predict import labels_and_weights, predict_logits
from model.training.prefetch import prefetched
from model.training.progress import Progress, Since
from model.training.run import BEST, CHECKPOINT, TrainingRun, write_json
from model.training.throughput import BatchFlops, Work
from model.training.validation import mean_ne

CHECKPOINT_EVERY_S = 30.0
METRICS_EVERY_S = 10.0


class Trainer:
    """Owns the run directory and what learns during training. With a `selection` it trains without validation."""

    def __init__(
        self,
        run: TrainingRun,
        log: RequestLog,
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
        selection: Selection | None = None,
    ) -> None:
        has_items = np.diff(log.offsets) > 0  # a down-sampled log may hold requests without any
        validation = validation[has_items[validation]]
        if not len(validation):
            raise ConfigError(
                f"split {run.config.split.value!r}: the validation part is empty, and the best step is chosen on it; "
                "use another split or more data"
            )
        self.run, self.config, self.selection = run, run.config, selection
        most = run.config.max_validation_requests
        if len(validation) > most:
            validation = validation[np.linspace(0, len(validation) - 1, most).astype(np.int64)]
        self.maker = BatchMaker(log, run.encoder)
        self.sample = sample_negatives(log, train, self.config)
        self.parts = Parts(train, validation, self.sample.shares)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.compute = Compute.resolve(self.config.device, self.config.precision)
        self.peak_flops = peak_flops(self.compute, self.config.peak_flops)
        self.flops = BatchFlops(flop_model(run.schema, self.config.model))
        self.plan = self._plan()
        self.total_steps = self.planned_steps = self.plan.batches * self.config.epochs
        if selection is not None:
            self.total_steps, self.planned_steps = selection.steps(self.plan.batches, self.config)
        examples = self.plan.examples_per_batch(self.sample.known)
        self.learner = Learner(run, self.compute, self.planned_steps, examples)
        self.state: dict[str, Any] = {
            "step": 0, "seconds": 0.0, "best_ne": None, "worse": 0, "stopped": "", "skipped": 0,
        }  # fmt: skip
        self.since = Since()

    def resume(self) -> None:
        """Continue from the newest checkpoint; ``metrics.jsonl`` forgets what came after it."""
        state, groups = self.run.load(CHECKPOINT)
        self.state |= state
        self.learner.restore(groups)
        self.run.forget_metrics_after(self.state["step"])

    def fit(self, report: Callable[[Progress], None], evaluated: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Train to the end (or to `patience`, or `max_seconds`); returns and stores the result."""
        saved_at = time.monotonic()
        while self.state["step"] < self.total_steps and not self.state["stopped"]:
            epoch, first = divmod(self.state["step"], self.plan.batches)
            due = self._evaluations(epoch)
            jobs = itertools.islice(enumerate(self.plan.epoch(epoch)), first, None)
            with closing(prefetched(jobs, partial(self._make, epoch), self.config.prefetch)) as batches:
                began = time.perf_counter()
                for number, (batch, work, requests) in enumerate(batches, first + 1):
                    report(self._step(epoch, batch, work, requests, began))
                    if number in due:
                        evaluated(self._evaluate(epoch))
                    limit = self.config.max_seconds if self.selection is None else None
                    if limit is not None and self.state["seconds"] >= limit:
                        self.state["stopped"] = "max_seconds"
                    if self.state["stopped"] or time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                        self._checkpoint()
                        saved_at = time.monotonic()
                    if self.state["stopped"] or self.state["step"] == self.total_steps:
                        break
                    began = time.perf_counter()
        return self._finish()

    def _plan(self) -> BatchPlan:
        requests = self.sample.requests
        if self.config.batch_work is None:
            return BatchPlan(requests, self.config)
        log = self.maker.log
        return BatchPlan(requests, self.config, log.history_lengths(requests).sum(axis=1), self.sample.shown)

    def _make(self, epoch: int, job: tuple[int, NDArray[np.int64]]) -> tuple[Batch, Work, NDArray[np.int64]]:
        """The batch of a step; on the prefetching thread."""
        number, requests = job
        noise = np.random.default_rng([self.config.seed, epoch, epoch * self.plan.batches + number])
        batch = self.maker.batch(requests, self.config.augment, noise, self.sample.kept)
        return batch.pinned(self.compute.device), self.flops.work(batch), requests

    def _step(self, epoch: int, batch: Batch, work: Work, requests: NDArray[np.int64], began: float) -> Progress:
        """One update, or none when something is not finite."""
        step = self.state["step"]
        loss, is_taken = self.learner.update(batch, step)
        if not is_taken:
            self._not_finite(epoch, loss, requests)
        self.state["step"] = step + 1
        spent = time.perf_counter() - began
        self.state["seconds"] += spent
        self.since.add(replace(work, seconds=spent), loss)
        if time.monotonic() - self.since.began > METRICS_EVERY_S:
            self._write_metrics(self._line(epoch))
        return Progress(epoch, step + 1, self.total_steps, loss, self.since.work.figures(self.peak_flops))

    def _not_finite(self, epoch: int, loss: float, requests: NDArray[np.int64]) -> None:
        """Note a step that must not reach the weights; raises `TrainingDiverged` unless it may be skipped."""
        step, self.state["skipped"] = self.state["step"], self.state["skipped"] + 1
        ids = [self.maker.log.request_ids[r] for r in requests.tolist()]
        file, what = describe_step(self.run, self.learner.named_parameters(), step, epoch, loss, ids)
        end = f"{what} at step {step}; train again with a lower dense_lr or sparse_lr (requests and parameters: {file})"
        if self.config.on_nan is OnNaN.STOP:
            raise TrainingDiverged(end)
        if self.state["skipped"] > self.config.max_skipped_steps:
            raise TrainingDiverged(f"{end}; {self.config.max_skipped_steps} steps had been skipped before (max_skipped_steps)")

    def _evaluations(self, epoch: int) -> frozenset[int]:
        """After which of its batches, from 1, an epoch is evaluated: the last, and others as `evaluations_per_epoch` asks."""
        if self.selection is not None:
            return frozenset()
        return evaluations(self.plan.batches, self.config.evaluations_per_epoch, epoch)

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        with self.learner.averaged():
            logits = predict_logits(self.learner.model, self.maker, self.parts.held_out, calibrated=False)
            labels, weights = labels_and_weights(self.maker, self.parts.held_out)
            ne = mean_ne(logits, labels, weights, self.sample.shares)
            line = self._line(epoch) | {"validation_ne": ne}
            self._write_metrics(line)
            if self.state["best_ne"] is None or ne < self.state["best_ne"]:
                self.state |= {"best_ne": ne, "worse": 0}
                kept = {name: line[name] for name in ("step", "epoch", "seconds", "validation_ne")}
                self.run.save(BEST, kept, self.learner.weights())
            else:
                self.state["worse"] += 1
                if self.config.patience is not None and self.state["worse"] >= self.config.patience:
                    self.state["stopped"] = "patience"
        return line

    def _line(self, epoch: int) -> dict[str, Any]:
        """What ``metrics.jsonl`` says of the steps since its last line."""
        place = {"step": self.state["step"], "epoch": epoch, "seconds": round(self.state["seconds"], 2)}
        losses = self.since.losses
        loss = float(np.mean(losses)) if losses and np.all(np.isfinite(losses)) else None
        return place | {"loss": loss, "skipped": self.state["skipped"]} | self.since.work.figures(self.peak_flops)

    def _write_metrics(self, line: dict[str, Any]) -> None:
        self.run.append_metrics(line)
        self.since = Since()

    def _checkpoint(self) -> None:
        self.run.save(CHECKPOINT, self.state, self.learner.tensors())

    def _finish(self) -> dict[str, Any]:
        """Calibrate the best weights (of a refit the last ones) and leave what serving needs; the model ends on the CPU."""
        epoch = max(0, self.state["step"] - 1) // self.plan.batches  # of the last step
        if self.selection is not None:
            with self.learner.averaged():
                chosen = self.selection.run.result["best"]["validation_ne"]
                place = {"step": self.state["step"], "epoch": epoch, "seconds": round(self.state["seconds"], 2)}
                self.run.save(BEST, place | {"validation_ne": chosen}, self.learner.weights())
        elif self.state["best_ne"] is None:
            self._evaluate(epoch)
        self._checkpoint()
        best_state, groups = self.run.load(BEST)
        self.learner.load(groups)
        model = self.learner.model
        calibrations = calibrate(self.run, model, self.maker, self.parts, self.selection)
        self.run.save(BEST, best_state, self.learner.weights())
        result = {
            "steps": self.state["step"],
            "steps_per_epoch": self.plan.batches,
            "planned_steps": self.planned_steps,
            "seconds": round(self.state["seconds"], 2),
            "stopped": self.state["stopped"] or ("epochs" if self.selection is None else "refit"),
            "skipped": self.state["skipped"],
            "best": best_state,
            "calibration": {k: c.model_dump() for k, c in calibrations.items()},
            "device": {"name": self.compute.name, "precision": self.compute.precision.value, "peak_flops": self.peak_flops},
            **write_references(self.run, model.cpu(), self.maker, self.parts),
        }
        write_json(self.run.path / "result.json", result)
        return result
