"""`kunlun tune`: search hyper-parameters of a training configuration; leaves the best one as YAML."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kunlun.cli import Command, UsageError
from model.cli.console import add_json_flag, note, progress_bar, report
from model.cli.log_flags import add_log_flags, open_log
from model.cli.train import step_note
from model.config import ConfigError, read_yaml

if TYPE_CHECKING:
    from model.training.progress import Progress
    from model.training.tuning import Row


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="training configuration (YAML) that the search starts from")
    parser.add_argument("--space", type=Path, required=True, help="fields to vary and their values (YAML)")
    parser.add_argument("--data", type=Path, required=True, help="canonical log, as written by `kunlun prepare`")
    parser.add_argument("--trials", type=int, default=20, help="trials in all, earlier ones included (default: 20)")
    add_log_flags(parser)
    parser.add_argument("--output", type=Path, required=True, help="directory of the search")
    parser.add_argument("--resume", action="store_true", help="continue the search in --output")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.trials < 1:
        raise UsageError(f"--trials: expected at least 1, found {arguments.trials}")
    try:
        return _tune(arguments)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def _tune(arguments: argparse.Namespace) -> int:
    from model.training.fit_run import Observer
    from model.training.search_space import load_space, with_values
    from model.training.tuning import BEST_CONFIG, TABLE, Search

    base = read_yaml(arguments.config)
    with_values(base, {})
    space = load_space(arguments.space, base)
    search = Search(arguments.output, base, space, open_log(arguments), resume=arguments.resume)
    with progress_bar(arguments.json) as bar:
        trials = bar.add_task("trials", total=arguments.trials, completed=search.finished, note="")
        training = bar.add_task("training", total=None, note="")

        def started(title: str, steps: int) -> None:
            bar.reset(training, total=steps, note="")

        def step(p: Progress) -> None:
            bar.update(training, completed=p.step, note=step_note(p))

        def ended(row: Row) -> None:
            best = search.best()
            shown = "" if best is None else f"best NE {best.value:.4f} (trial {best.number})"
            bar.update(trials, completed=search.finished, note=shown)
            note(_line(row))

        search.run(arguments.trials, Observer(note, started, step), ended)
    best = search.best()
    if best is None:
        raise ConfigError("no trial was complete; raise --trials or narrow the space")
    rows = search.rows()
    ordered = sorted(rows, key=lambda row: (row.state != "complete", row.validation_ne is None, row.validation_ne or 0.0))
    figures = {
        "search": str(arguments.output),
        "trials": len(rows),
        "pruned": sum(row.state == "pruned" for row in rows),
        "best_trial": best.number,
        "validation_ne": best.value,
        "values": best.params,
        "config": str(arguments.output / BEST_CONFIG),
        "table": str(arguments.output / TABLE),
    }
    files = f"best configuration → {arguments.output / BEST_CONFIG}; all trials: {arguments.output / TABLE}"
    lines = [*map(_line, ordered[:10]), files]
    report(arguments, figures, "\n".join(lines))
    return 0


def _line(row: Row) -> str:
    ne = "     –" if row.validation_ne is None else f"{row.validation_ne:.4f}"
    values = "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.values.items())
    return f"trial {row.number:>4}  {row.state:<8}  NE {ne}  {values}"


command = Command("search hyper-parameters of a training configuration", _configure, _run)
