"""`kunlun train`: fit the features, train, keep the best checkpoint, calibrate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kunlun.cli import Command, UsageError
from model.cli.console import add_json_flag, note, progress_bar, report
from model.cli.log_flags import add_log_flags, open_log
from model.config import ConfigError

if TYPE_CHECKING:
    from model.training.progress import Progress


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="training configuration (YAML)")
    parser.add_argument("--data", type=Path, required=True, help="canonical log, as written by `kunlun prepare`")
    add_log_flags(parser)
    parser.add_argument("--output", type=Path, required=True, help="directory of this run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output from its newest checkpoint")
    parser.add_argument("--seed", type=int, help="override the configuration's seed")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    from model.training.alarms import TrainingDiverged

    try:
        return _train(arguments)
    except (ConfigError, TrainingDiverged) as error:
        raise UsageError(str(error)) from error


def _train(arguments: argparse.Namespace) -> int:
    from model.training.config import load_train_config, parse_config
    from model.training.fit_run import Observer, fit_run

    config = load_train_config(arguments.config)
    if arguments.seed is not None:
        config = parse_config(config.model_dump() | {"seed": arguments.seed})
    log = open_log(arguments)
    with progress_bar(arguments.json) as bar:
        task = bar.add_task("training", total=None, note="")

        def started(title: str, steps: int) -> None:
            bar.reset(task, total=steps, description=title, note="")

        def step(p: Progress) -> None:
            bar.update(task, completed=p.step, note=step_note(p))

        def evaluated(line: dict[str, Any]) -> None:
            note(f"step {line['step']}: validation NE {line['validation_ne']:.4f} after {line['seconds']:.0f} s")

        result = fit_run(config, log, arguments.output, Observer(note, started, step, evaluated), resume=arguments.resume)
    best = result["best"]
    report(
        arguments,
        {"run": str(arguments.output), **result},
        f"best validation NE {best['validation_ne']:.4f} at step {best['step']} "
        f"({result['seconds']:.0f} s of training, ended by {result['stopped']}) → {arguments.output}",
    )
    return 0


def step_note(p: Progress) -> str:
    """What stands beside the bar: loss, speed, MFU of real and of padded work, padding."""
    f = p.figures
    mfu = "" if f["mfu"] is None else f"  MFU {f['mfu']:.1%} ({f['mfu_padded']:.1%} padded)"
    return f"loss {p.loss:.4f}  {f['examples_per_s']:,.0f} examples/s{mfu}  padding {f['padding']:.0%}"


command = Command("train a model on a canonical log", _configure, _run)
