"""`kunlun train`: fit the features, train, keep the best checkpoint, calibrate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kunlun.cli import Command, UsageError
from model.cli.console import add_json_flag, note, progress_bar, report
from model.config import ConfigError

if TYPE_CHECKING:
    from model.training.trainer import Progress


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="training configuration (YAML)")
    parser.add_argument("--data", type=Path, required=True, help="canonical log, as written by `kunlun prepare`")
    parser.add_argument("--output", type=Path, required=True, help="directory of this run")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
    parser.add_argument("--seed", type=int, help="override the configuration's seed")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    from model.training.trainer import TrainingDiverged

    try:
        return _train(arguments)
    except (ConfigError, TrainingDiverged) as error:
        raise UsageError(str(error)) from error


def _train(arguments: argparse.Namespace) -> int:
    from model.data.request_log import load_request_log
    from model.data.split import split_requests
    from model.training.config import load_train_config, parse_config
    from model.training.fit_features import fit_features
    from model.training.negative_sampling import sample_negatives
    from model.training.run import TrainingRun
    from model.training.trainer import Trainer
    from model.training.warm_start import WarmStart

    config = load_train_config(arguments.config)
    if arguments.seed is not None:
        config = parse_config(config.model_dump() | {"seed": arguments.seed})
    log = load_request_log(arguments.data)
    split = split_requests(log, config.split.value)
    warm = None
    if arguments.resume:
        run = TrainingRun.open(arguments.output)
        run.check_data(log)
        if run.config != config:
            raise ConfigError(
                f"{arguments.config}: differs from {run.path}/config.json; --resume continues the run as it began"
            )
    else:
        sample = sample_negatives(log, split.train, config)
        stats = fit_features(log, split.train, sample.kept)
        if config.warm_start is not None:
            if config.warm_start.resolve() == arguments.output.resolve():
                raise ConfigError(f"warm_start: expected another directory than --output, found {config.warm_start}")
            warm = WarmStart.open(config.warm_start, log.schema)
            stats = warm.stats(stats)
        run = TrainingRun.create(arguments.output, config, log.schema, stats)
        run.remember_data(log)
    trainer = Trainer(run, log, split.train, split.validation)
    if arguments.resume:
        trainer.resume()
    elif warm is not None:
        warm.fill(trainer.model, trainer.position_bias, run.encoder)
    note(
        f"{len(split.train):,} training requests, {len(split.validation):,} validation; "
        f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters"
    )
    with progress_bar(arguments.json) as bar:
        task = bar.add_task("training", total=trainer.total_steps, note="")

        def step(p: Progress) -> None:
            bar.update(task, completed=p.step, note=f"loss {p.loss:.4f}  {p.examples_per_s:,.0f} examples/s")

        def evaluated(line: dict[str, Any]) -> None:
            note(f"step {line['step']}: validation NE {line['validation_ne']:.4f} after {line['seconds']:.0f} s")

        result = trainer.fit(step, evaluated)
    best = result["best"]
    report(
        arguments,
        {"run": str(run.path), **result},
        f"best validation NE {best['validation_ne']:.4f} at step {best['step']} "
        f"({result['seconds']:.0f} s of training, ended by {result['stopped']}) → {run.path}",
    )
    return 0


command = Command("train a model on a canonical log", _configure, _run)
