"""`kunlun evaluate`: position-free figures of a trained run on its held-out test part."""

from __future__ import annotations

import argparse
from pathlib import Path

from kunlun.cli import Command, UsageError
from model.cli.console import add_json_flag, report
from model.config import ConfigError


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="directory of a finished training run")
    parser.add_argument("--data", type=Path, required=True, help="the canonical log it was trained on")
    parser.add_argument("--part", choices=("test", "validation", "train"), default="test")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    from model.data.request_log import load_request_log
    from model.training.evaluation import evaluate_run
    from model.training.run import TrainingRun, write_json

    try:
        run = TrainingRun.open(arguments.run)
        figures = evaluate_run(run, load_request_log(arguments.data), arguments.part)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    if arguments.part == "test":
        write_json(run.path / "evaluation.json", {"part": "test", "tasks": figures})
    lines = [f"{arguments.part} part, position-free, 95 % intervals over users"]
    for task, values in figures.items():
        lines += [f"  {task}: {name:<16} {_shown(value)}" for name, value in values.items()]
    report(arguments, {"run": str(run.path), "part": arguments.part, "tasks": figures}, "\n".join(lines))
    return 0


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


command = Command("measure a trained run on held-out requests", _configure, _run)
