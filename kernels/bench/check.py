"""The whole check in order: the machine, parity and the sanitizer side by side, then speed alone on the GPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from kernels.bench import report
from kernels.bench.device import Machine, describe
from kernels.bench.parity import Parity, Task, tasks
from kernels.bench.run import Result, measure_case, plan
from kernels.bench.sanitizer import Sanitized, Sanitizer

CORRECTNESS_SHARE = 0.6
"""Of the time budget, at most, for parity and the sanitizer; most of it is compiling kernels, on all cores."""


def run_check(until: float, dry_run: bool, parts: set[str], command: str) -> tuple[str, dict[str, Any]]:
    """(Markdown report, closing figures), by `until` on the monotonic clock. Exits with a message where there is no GPU."""
    if not dry_run and not torch.cuda.is_available():
        sys.exit("kernels.bench: expected a CUDA device, found none; `--dry-run` exercises the script without one")
    machine = describe("cpu" if dry_run else "cuda")
    begun, missing = time.monotonic(), list[str]()
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        parities, sanitized = list[Parity](), list[Sanitized]()
        if parts & {"parity", "races"}:
            limit = until if "speed" not in parts else begun + CORRECTNESS_SHARE * (until - begun)
            parities, sanitized = _correctness(machine, dry_run, parts, limit, bar, missing)
        results = _speed(machine, dry_run, until, bar, missing) if "speed" in parts else []
    text = report.markdown(machine, command, parities, sanitized, results, missing)
    return text, report.figures(machine, parts, parities, sanitized, results, missing)


def _correctness(
    machine: Machine, dry_run: bool, parts: set[str], until: float, bar: Progress, missing: list[str]
) -> tuple[list[Parity], list[Sanitized]]:
    """Parity, and the sanitizer as soon as the kernels of its small run are compiled (Triton keeps them on disk)."""
    small = [task for task in tasks(machine.device, True) if task.dtype == torch.bfloat16]
    everything = tasks(machine.device, dry_run)
    found, verdicts, sanitizer = list[Parity](), list[Sanitized](), None
    if dry_run:
        if "parity" in parts:
            found = [task.run() for task in bar.track(everything, description="parity")]
        return found, Sanitizer(machine.device).wait(until) if "races" in parts else []
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        warm = [pool.submit(Task.run, task) for task in small]
        futures = {pool.submit(Task.run, task): task for task in everything} if "parity" in parts else {}
        if "races" in parts:
            wait(warm, timeout=max(0.0, until - time.monotonic()))
            sanitizer = Sanitizer(machine.device)
        done, late = wait(futures, timeout=max(0.0, until - time.monotonic()))
        for future, task in futures.items():
            if future in done:
                found.append(_result(future, task))
                bar.console.print(report.parity_line(found[-1]), highlight=False)
        missing += [f"parity of {task.name}" for future, task in futures.items() if future in late]
        pool.shutdown(wait=False, cancel_futures=True)
        if sanitizer is not None:
            verdicts = sanitizer.wait(until)
    return found, verdicts


def _result(future: Future[Parity], task: Task) -> Parity:
    """What a worker found; a kernel that does not compile or run is a comparison that failed."""
    failure = future.exception()
    if failure is None:
        return future.result()
    operation = f"{task.name.rsplit(', ', 1)[0]} ({type(failure).__name__}: {str(failure).splitlines()[0][:160]})"
    return Parity(operation, str(task.dtype).removeprefix("torch."), {"run": float("inf")}, {"run": 1.0})


def _speed(machine: Machine, tiny: bool, until: float, bar: Progress, missing: list[str]) -> list[Result]:
    """Every case with what needs no compiler, most telling shapes first; then `torch.compile` where it is asked for."""
    results, todo = list[Result](), plan(machine, tiny)
    task = bar.add_task("speed", total=len(todo))
    for benchmark, case, compiled in todo:
        if time.monotonic() > until:
            missing.append(f"{benchmark.name} {case.name}{' (torch.compile)' if compiled else ''}")
        else:
            for result in measure_case(machine, benchmark, case, compiled):
                bar.console.print(report.line(result), highlight=False)
                results.append(result)
        bar.advance(task)
    return sort_by_case(results)


def sort_by_case(results: Sequence[Result]) -> list[Result]:
    """Results of one case together, in the order in which cases were first measured."""
    cases = list(dict.fromkeys((r.benchmark, r.case) for r in results))
    return sorted(results, key=lambda r: (cases.index((r.benchmark, r.case)), r.direction == "backward"))
