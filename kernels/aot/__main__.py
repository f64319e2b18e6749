"""`python -m kernels.aot`: build the launcher library, report on it, find tile sizes."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.progress import Progress

from kernels.aot import build, catalogue
from kernels.aot.compiler import Compiled, Job
from kernels.aot.targets import TARGETS, target

FOLDER = Path("build/kernels")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help=f"compile the kernels and link {build.LIBRARY} (no GPU, no CUDA toolkit)")
    _add_selection(make)
    chosen = parser.parse_args(arguments)
    return _build(chosen)


def _build(chosen: argparse.Namespace) -> int:
    started = time.monotonic()
    compiled = compile_selected(chosen)
    library = build.link_library(compiled, chosen.output, _version())
    megabytes = library.stat().st_size / 1e6
    sys.stdout.write(f"{library}: {len(compiled)} kernels, {megabytes:.1f} MB, {time.monotonic() - started:.0f} s\n")
    return 0


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=FOLDER, help="build folder, also the cache (default: %(default)s)")
    parser.add_argument(
        "--sm", type=int, nargs="+", default=[t.sm for t in TARGETS], help="compute capabilities, as 90 for 9.0"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="variants whose name contains one of these")


def selected_jobs(chosen: argparse.Namespace) -> list[Job]:
    """The jobs that `--sm` and `--only` ask for; raises `ValueError` when there are none."""
    jobs = [
        Job(variant, target(sm).sm)
        for sm in chosen.sm
        for variant in catalogue.variants(sm)
        if not chosen.only or any(part in variant.name for part in chosen.only)
    ]
    if not jobs:
        raise ValueError(f"--only {' '.join(chosen.only)}: no variant has such a name")
    return jobs


def compile_selected(chosen: argparse.Namespace) -> list[Compiled]:
    """Compiles them with a progress bar."""
    jobs = selected_jobs(chosen)
    with Progress(transient=True) as bar:
        task = bar.add_task("compiling", total=len(jobs))
        return build.compile_jobs(jobs, chosen.output, lambda _: bar.advance(task))


def _version() -> str:
    try:
        return version("kunlun-serving")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"


if __name__ == "__main__":
    sys.exit(main())
