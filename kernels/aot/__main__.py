"""`python -m kernels.aot`: build the launcher library, report on the kernels, find tile sizes, check all of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kernels.aot import build, check, report, tile_search, tiles
from kernels.aot.compiler import Compiled, Job
from kernels.aot.jobs import selected_jobs
from kernels.aot.targets import TARGETS

FOLDER = Path("build/kernels")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help=f"compile the kernels and link {build.LIBRARY} (no GPU, no CUDA toolkit)")
    _add_selection(make)
    write = commands.add_parser(
        "report", help=f"registers, memory, instructions and rooflines of all kernels into {report.PATH}"
    )
    write.add_argument("--to", type=Path, default=report.PATH, help="file to write (default: %(default)s)")
    search = commands.add_parser("tiles", help="find tile sizes without spills for every compute capability (minutes)")
    every = commands.add_parser("check", help="run, compile and check all that needs no GPU; ends with one JSON line")
    every.add_argument("--tests", type=Path, default=Path("tests/kernels"), help="tests to execute (default: %(default)s)")
    every.add_argument("--cpu", metavar="MODULE", help="module that measures fractions of a CPU's peak, run with python -m")
    every.add_argument("--skip-tests", action="store_true", help="leave the tests out")
    for command in (write, search, every):
        command.add_argument("--output", type=Path, default=FOLDER, help="build folder, also the cache (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        return {"build": _build, "report": _report, "tiles": _tiles, "check": _check}[chosen.command](chosen)
    except (ValueError, RuntimeError) as error:  # a selection without kernels, a compiler that fails
        sys.stderr.write(f"python -m kernels.aot {chosen.command}: {error}\n")
        return 1


def _build(chosen: argparse.Namespace) -> int:
    started = time.monotonic()
    compiled = _compile(selected_jobs(chosen.sm, chosen.only), chosen.output)
    library = build.link_library(compiled, chosen.output, _version())
    megabytes = library.stat().st_size / 1e6
    sys.stdout.write(f"{library}: {len(compiled)} kernels, {megabytes:.1f} MB, {time.monotonic() - started:.0f} s\n")
    return 0


def _report(chosen: argparse.Namespace) -> int:
    compiled = _compile(selected_jobs(), chosen.output)
    chosen.to.write_text(report.markdown(compiled), encoding="utf-8")
    faults = [problem for unit in compiled for problem in report.problems(unit)]
    sys.stdout.write(
        "".join(f"{fault}\n" for fault in faults) + f"{chosen.to}: {len(compiled)} kernels, {len(faults)} faults\n"
    )
    return 1 if faults else 0


def _tiles(chosen: argparse.Namespace) -> int:
    found = tile_search.search(tile_search.every_sm(), chosen.output / "triton", lambda line: print(line, file=sys.stderr))
    tiles.write_table(found)
    sys.stdout.write(f"{tiles.TABLE}: {len(found)} classes\n")
    return 0


def _check(chosen: argparse.Namespace) -> int:
    started = time.monotonic()
    parts: dict[str, dict[str, Any] | None] = {}

    def add(name: str, part: dict[str, Any] | None) -> None:
        parts[name] = part
        check.say_part(name, part)

    if not chosen.skip_tests:
        add("executed", check.executed(chosen.tests, chosen.output))
    jobs = selected_jobs()
    compiled = _compile(jobs, chosen.output)
    add("compiled", check.compiled_figures(compiled, len(jobs)))
    add("report", check.checked_report(compiled, report.PATH))
    add("library", check.checked_library(compiled, chosen.output, _version()))
    add("cpu", check.measured_on_cpu(chosen.cpu))
    line = check.closing_line(parts, started)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=FOLDER, help="build folder, also the cache (default: %(default)s)")
    parser.add_argument(
        "--sm", type=int, nargs="+", default=[t.sm for t in TARGETS], help="compute capabilities, as 90 for 9.0"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="variants whose name contains one of these")


def _compile(jobs: Sequence[Job], folder: Path) -> list[Compiled]:
    """Compiles with a progress bar on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compiling", total=len(jobs))
        return build.compile_jobs(jobs, folder, lambda _: bar.advance(task))


def _version() -> str:
    try:
        return version("kunlun-serving")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"


if __name__ == "__main__":
    sys.exit(main())
