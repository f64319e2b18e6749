"""The whole check in order: the machine, parity, the sanitizer, speed."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from kernels.bench import report
from kernels.bench.device import Machine, describe
from kernels.bench.parity import DTYPES, Parity, compare, operations
from kernels.bench.run import Result, measure_case, plan
from kernels.bench.sanitizer import Sanitized, sanitize

SANITIZER_SHARE = 0.4
"""Of the time that is left, at most, for the sanitizer."""


def run_check(until: float, dry_run: bool, parts: set[str], command: str) -> tuple[str, dict[str, Any]]:
    """(Markdown report, closing figures), by `until` on the monotonic clock. Exits with a message where there is no GPU."""
    if not dry_run and not torch.cuda.is_available():
        sys.exit("kernels.bench: expected a CUDA device, found none; `--dry-run` exercises the script without one")
    machine = describe("cpu" if dry_run else "cuda")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        parities = _parity(machine, dry_run, bar) if "parity" in parts else []
        sanitized: list[Sanitized] = []
        if "races" in parts:
            bar.console.print("compute-sanitizer")
            sanitized = sanitize(machine.device, SANITIZER_SHARE * (until - time.monotonic()))
        results, skipped = _speed(machine, dry_run, until, bar) if "speed" in parts else ([], [])
    text = report.markdown(machine, command, parities, sanitized, results, skipped)
    return text, report.figures(machine, parities, sanitized, results, skipped)


def _parity(machine: Machine, small: bool, bar: Progress) -> list[Parity]:
    todo = list(operations(machine.device, small))
    found, task = [], bar.add_task("parity", total=len(todo))
    for operation in todo:
        found += [compare(operation, dtype, machine.device) for dtype in DTYPES]
        bar.advance(task)
    return found


def _speed(machine: Machine, tiny: bool, until: float, bar: Progress) -> tuple[list[Result], list[str]]:
    results, skipped, todo = list[Result](), list[str](), plan(machine, tiny)
    task = bar.add_task("speed", total=len(todo))
    for benchmark, case in todo:
        if time.monotonic() > until:
            skipped.append(f"{benchmark.name} {case.name}")
        else:
            for result in measure_case(machine, benchmark, case, until, lambda text: bar.update(task, description=text)):
                bar.console.print(report.line(result), highlight=False)
                results.append(result)
        bar.advance(task)
    return results, skipped
