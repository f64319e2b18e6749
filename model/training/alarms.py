"""What a person has to hear of while a run trains: steps that are not finite, and label rates that jump.

A step whose loss or gradients hold a NaN or an infinity never reaches the weights. It is described in
``alarms/step-<n>.json`` (which requests, which parameters, since when), and `on_nan` says whether the run ends there or goes
on without it; batches are functions of seed, epoch and step, so the file is enough to make the same batch again.

Label rates are compared before training: between consecutive windows of the training part in time, and between all of it and
the validation part. A jump often is a change of logging, not of users, and calibration and NE rest on the rates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.data.request_log import RequestLog
from model.training.run import TrainingRun, write_json

WINDOWS = 8
JUMP_SHARE, JUMP_DEVIATIONS = 0.25, 5.0
"""A jump is a relative change above the one that is more than the other of its standard errors, by request."""


class TrainingDiverged(RuntimeError):
    """The loss or the gradients are no longer numbers."""


def describe_step(
    run: TrainingRun, named: Mapping[str, nn.Parameter], step: int, epoch: int, loss: float, requests: list[str]
) -> tuple[str, str]:
    """Write ``alarms/step-<n>.json``; returns its path in the run and what is not finite, in words."""
    weights = [_entry(name, p.detach()) for name, p in named.items()]
    gradients = [_entry(name, _values(p.grad)) for name, p in named.items() if p.grad is not None]
    wrong_weights, wrong_gradients = ([e for e in group if e["not_finite"]] for group in (weights, gradients))
    folder = run.path / "alarms"
    folder.mkdir(exist_ok=True)
    file = folder / f"step-{step:07d}.json"
    report = {"step": step, "epoch": epoch, "loss": str(loss), "requests": requests}
    write_json(file, report | {"weights": wrong_weights, "gradients": wrong_gradients})
    if wrong_weights:
        what = f"weights are not finite in {_names(wrong_weights)}"
    elif not math.isfinite(loss):
        what = f"the loss is {loss}"
    else:
        what = f"gradients are not finite in {_names(wrong_gradients)}"
    return str(file.relative_to(run.path)), what


def label_rate_jumps(log: RequestLog, train: NDArray[np.int64], validation: NDArray[np.int64]) -> list[str]:
    """One sentence per jump of a task's label rate; requests in time order."""
    alarms = []
    for number, task in enumerate(log.schema.tasks):
        windows = [_Rate.of(log, part, number) for part in np.array_split(train, min(WINDOWS, max(1, len(train))))]
        for place, (before, after) in enumerate(itertools.pairwise(windows), start=2):
            if after.jumps_from(before):
                alarms.append(
                    f"label rate of {task.name!r} jumps from {before.rate:.4f} to {after.rate:.4f} in window {place} of "
                    f"{len(windows)} of the training part (in time order); check what was logged then"
                )
        whole, held_out = _Rate.of(log, train, number), _Rate.of(log, validation, number)
        if held_out.jumps_from(whole):
            alarms.append(
                f"label rate of {task.name!r} is {whole.rate:.4f} in the training and {held_out.rate:.4f} in the validation "
                "part; the split or the logging differs between them"
            )
    return alarms


class _Rate:
    """Label rate of a task over requests, with the standard error of a ratio of sums over requests."""

    def __init__(self, positives: NDArray[np.float64], known: NDArray[np.float64]) -> None:
        total = known.sum()
        self.rate = float(positives.sum() / total) if total else math.nan
        self.error = float(np.sqrt(np.square(positives - self.rate * known).sum()) / total) if total else math.inf

    @classmethod
    def of(cls, log: RequestLog, requests: NDArray[np.int64], task: int) -> _Rate:
        positives: list[NDArray[np.float64]] = [np.zeros(0)]
        known: list[NDArray[np.float64]] = [np.zeros(0)]
        for part in log.blocks(requests):
            rows = log.rows_of(part)
            own = np.repeat(np.arange(len(part)), log.offsets[part + 1] - log.offsets[part])
            labels, weights = log.labels[rows, task], log.weights(rows)
            positives.append(np.bincount(own, np.nan_to_num(labels) * weights, len(part)).astype(np.float64))
            known.append(np.bincount(own, ~np.isnan(labels) * weights, len(part)).astype(np.float64))
        return cls(np.concatenate(positives), np.concatenate(known))

    def jumps_from(self, other: _Rate) -> bool:
        if not (math.isfinite(self.error) and math.isfinite(other.error)):
            return False
        change, base = abs(self.rate - other.rate), max(min(self.rate, other.rate), 1e-12)
        return change > JUMP_SHARE * base and change > JUMP_DEVIATIONS * math.hypot(self.error, other.error)


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _entry(name: str, tensor: Tensor) -> dict[str, Any]:
    finite = torch.isfinite(tensor)
    largest = tensor[finite].abs().max().item() if finite.any() else 0.0
    return {"name": name, "not_finite": int((~finite).sum()), "of": tensor.numel(), "largest_finite": largest}


def _names(entries: list[dict[str, Any]]) -> str:
    shown = ", ".join(f"{e['name']} ({e['not_finite']:,} of {e['of']:,})" for e in entries[:3])
    return shown + (f" and {len(entries) - 3} more" if len(entries) > 3 else "")
