"""A whole run, as `kunlun train` and `kunlun tune` make it: split, features, training, and the refit that may follow.

`refit_on_validation`: after model selection the same configuration is trained from the start on training and validation part
together, with features fitted on both, for as many steps (or passes) as the best step took. The run that selected stays in
``selection/``; its calibration, its reference of scores and its validation NE are those of the run, since the refit has no
held-out data left to fit them on. The test part is untouched by either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.request_log import RequestLog
from model.training.alarms import label_rate_jumps
from model.training.config import TrainConfig, split_of
from model.training.finish import Selection
from model.training.fit_features import fit_features
from model.training.negative_sampling import sample_negatives
from model.training.progress import Progress
from model.training.run import SELECTION, TrainingRun, has_checkpoint
from model.training.trainer import Trainer
from model.training.warm_start import WarmStart


@dataclass(frozen=True)
class Observer:
    """Who is told what happens: lines for people, the total of steps, every step, every evaluation."""

    note: Callable[[str], None] = lambda text: None
    started: Callable[[str, int], None] = lambda title, steps: None
    step: Callable[[Progress], None] = lambda progress: None
    evaluated: Callable[[dict[str, Any]], None] = lambda line: None


def fit_run(
    config: TrainConfig, log: RequestLog, output: Path, observer: Observer | None = None, *, resume: bool = False
) -> dict[str, Any]:
    """Train into `output`; returns what ``result.json`` says. Raises `ConfigError` and `TrainingDiverged`.

    `resume`: continue the run there from its newest checkpoint; one that was killed before its first begins again.
    """
    observer = observer or Observer()
    split = split_of(config, log)
    for jump in label_rate_jumps(log, split.train, split.validation):
        observer.note(f"alarm: {jump}")
    if not config.refit_on_validation:
        prepared = _prepare(config, log, output, split.train, resume)
        continues = resume and has_checkpoint(output)
        return _fit(prepared, log, split.train, split.validation, observer, "training", resume=continues)
    both = np.sort(np.concatenate([split.train, split.validation]))
    prepared, first = _prepare(config, log, output, both, resume), output / SELECTION
    if not (first / "result.json").is_file():
        continues = has_checkpoint(first)
        selecting = config.model_copy(update={"refit_on_validation": False})
        begun = _prepare(selecting, log, first, split.train, continues)
        _fit(begun, log, split.train, split.validation, observer, "selection", resume=continues)
    selection = Selection(TrainingRun.open(first))
    continues = resume and has_checkpoint(output)
    return _fit(prepared, log, both, split.validation, observer, "refit", resume=continues, selection=selection)


class _Prepared(NamedTuple):
    run: TrainingRun
    warm: WarmStart | None


def _prepare(config: TrainConfig, log: RequestLog, path: Path, train: NDArray[np.int64], resume: bool) -> _Prepared:
    """Open the run at `path`, or create it with features fitted on `train`; with what it begins with, unless it goes on."""
    if resume:
        run = TrainingRun.open(path)
        run.check_data(log)
        if run.config != config:
            raise ConfigError(f"the configuration differs from {path}/config.json; --resume continues the run as it began")
        begins = config.warm_start is not None and not has_checkpoint(path)
        return _Prepared(run, WarmStart.open(config.warm_start, log.schema) if begins and config.warm_start else None)
    stats, warm = fit_features(log, train, sample_negatives(log, train, config).kept), None
    if config.warm_start is not None:
        if config.warm_start.resolve() == path.resolve():
            raise ConfigError(f"warm_start: expected another directory than --output, found {config.warm_start}")
        warm = WarmStart.open(config.warm_start, log.schema)
        stats = warm.stats(stats)
    run = TrainingRun.create(path, config, log.schema, stats)
    run.remember_data(log)
    return _Prepared(run, warm)


def _fit(
    prepared: _Prepared,
    log: RequestLog,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    observer: Observer,
    title: str,
    *,
    resume: bool,
    selection: Selection | None = None,
) -> dict[str, Any]:
    run, warm = prepared
    trainer = Trainer(run, log, train, validation, selection)
    learner = trainer.learner
    if resume:
        trainer.resume()
    else:
        run.forget_metrics_after(0)  # of one that was killed before its first checkpoint
        if warm is not None:
            warm.fill(learner.model, learner.position_bias, run.encoder)
            learner.begin_average()
    parameters, compute = sum(p.numel() for p in learner.model.parameters()), trainer.compute
    held_out = "" if selection else f", {len(validation):,} validation"
    observer.note(
        f"{title}: {len(train):,} training requests{held_out}; {parameters:,} parameters; "
        f"{compute.name}, {compute.precision.value}"
    )
    observer.started(title, trainer.total_steps)
    return trainer.fit(observer.step, observer.evaluated)
