"""`python -m kernels.tensorrt`: build the plugin library; check plugin and nodes without a GPU."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from kernels.tensorrt.build import build_plugin
from kernels.tensorrt.check import Row, gather, kernel_rows, line, table
from kernels.tensorrt.loader import find_plugin
from kernels.tensorrt.toolkit import ToolMissing, find_headers

FOLDER, KERNELS = Path("build/tensorrt"), Path("build/kernels")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.tensorrt", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="compile the plugin library with the kernels that `make kernels` has compiled")
    every = commands.add_parser("check", help="tests, plugin, parser and builder for every operator; ends with one JSON line")
    every.add_argument("--tests", type=Path, default=Path("tests/kernels/tensorrt"), help="tests to run (default: %(default)s)")
    every.add_argument("--skip-tests", action="store_true", help="leave the tests out")
    make.add_argument("--kernels", type=Path, default=KERNELS, help="build folder of the kernels (default: %(default)s)")
    make.add_argument("--output", type=Path, default=FOLDER, help="build folder (default: %(default)s)")
    every.add_argument("--output", type=Path, default=FOLDER / "check", help="build folder (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    return _build(chosen) if chosen.command == "build" else _check(chosen)


def _build(chosen: argparse.Namespace) -> int:
    try:
        library = find_plugin(build_plugin(find_headers(), chosen.kernels / "generated", chosen.output))
    except (ToolMissing, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    size = library.path.stat().st_size / 1e6
    sys.stdout.write(f"{library.path}: TensorRT {library.tensorrt}, {len(library.kernels)} kernels, {size:.1f} MB\n")
    return 0


def _check(chosen: argparse.Namespace) -> int:
    started = time.monotonic()
    rows: list[Row] = []
    for row in kernel_rows(gather(chosen.output), None if chosen.skip_tests else chosen.tests, chosen.output):
        sys.stderr.write(f"{row.what}: {row.result} {row.note}\n")
        rows.append(row)
    sys.stdout.write(f"{table(rows)}\n{line(rows, time.monotonic() - started)}\n")
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
