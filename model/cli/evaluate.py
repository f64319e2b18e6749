"""`kunlun evaluate`: position-free figures of trained runs on held-out requests, overall and per slice; and NE gains.

Several RUNs are seeds of one model, and so are those after --against: gains are paired over the same users, and seeds
are part of their intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kunlun.cli import Command, UsageError
from model.cli.console import add_json_flag, report
from model.cli.log_flags import add_log_flags, open_log
from model.config import ConfigError

if TYPE_CHECKING:
    from model.data.request_log import RequestLog
    from model.training.evaluation import HeldOut

SHOWN_PER_SLICE = ("ne", "auc", "calibration")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="+", help="directory of a finished training run; several: seeds of one model")
    parser.add_argument("--data", type=Path, required=True, help="the canonical log it was trained on")
    add_log_flags(parser)
    parser.add_argument("--part", choices=("test", "validation", "train"), default="test")
    parser.add_argument(
        "--against", type=Path, nargs="+", metavar="RUN", help="runs of another model: print the relative NE gain over it"
    )
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    from model.data.slices import slices_of
    from model.training.run import write_json

    try:
        log = open_log(arguments)
        slices = slices_of(log, arguments.data)
        runs = [_held_out(path, log, arguments.part) for path in arguments.run]
        others = [_held_out(path, log, arguments.part) for path in arguments.against or ()]
        _same_requests([*runs, *others])
        figures = [own.figures(slices) for own in runs]
        gains = _gains(runs, others, slices) if others else {}
    except ConfigError as error:
        raise UsageError(str(error)) from error
    for own, found in zip(runs, figures, strict=True):
        if arguments.part == "test":
            write_json(own.run.path / "evaluation.json", {"part": "test", "tasks": found})
    line: dict[str, Any] = {"run": str(runs[0].run.path), "part": arguments.part, "tasks": figures[0]}
    if len(runs) > 1:
        line["runs"] = {str(own.run.path): found for own, found in zip(runs, figures, strict=True)}
    if others:
        line |= {"against": [str(o.run.path) for o in others], "ne_gain_percent": gains}
    report(arguments, line, "\n".join(_text(runs, figures, others, gains)))
    return 0


def _held_out(path: Path, log: RequestLog, part: str) -> HeldOut:
    from model.training.evaluation import predict_held_out
    from model.training.run import TrainingRun

    return predict_held_out(TrainingRun.open(path), log, part)


def _same_requests(runs: list[HeldOut]) -> None:
    """Pairs need the same requests: refuse runs that hold out others."""
    for run in runs[1:]:
        if run.requests.tolist() != runs[0].requests.tolist():
            raise ConfigError(
                f"{run.run.path}: holds out other requests (split {run.run.config.split.value}) than {runs[0].run.path} "
                f"(split {runs[0].run.config.split.value}); compare runs of the same split"
            )


def _gains(runs: list[HeldOut], others: list[HeldOut], slices: dict[str, Any]) -> dict[str, Any]:
    from model.metrics.comparison import gains_by_slice

    own, theirs = [run.draws(slices) for run in runs], [run.draws(slices) for run in others]
    return {task: gains_by_slice([r[task] for r in own], [r[task] for r in theirs]) for task in own[0]}


def _text(
    runs: list[HeldOut], figures: list[dict[str, dict[str, Any]]], others: list[HeldOut], gains: dict[str, Any]
) -> list[str]:
    lines = []
    for run, found in zip(runs, figures, strict=True):
        lines.append(f"{run.run.path}: {run.part} part, position-free, 95 % intervals over users")
        for task, values in found.items():
            lines += [f"  {task}: {name:<16} {_shown(value)}" for name, value in values.items() if name != "slices"]
            for name, own in values.get("slices", {}).items():
                shown = "  ".join(f"{f} {_shown(own[f])}" for f in SHOWN_PER_SLICE if f in own)
                lines.append(f"  {task}, {name} ({own['examples']:,} examples): {shown}")
    for task, by_slice in gains.items():
        over, seeds = ", ".join(str(o.run.path) for o in others), " and seeds" * (max(len(runs), len(others)) > 1)
        lines.append(f"relative NE gain over {over} in % (positive: better), paired over users{seeds}")
        lines += [
            f"  {task}, {'all' if name == '*' else name}: {g['value']:+.3f}  [{g['low']:+.3f}, {g['high']:+.3f}]"
            for name, g in by_slice.items()
        ]
    return lines


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


command = Command("measure trained runs on held-out requests, and one model against another", _configure, _run)
