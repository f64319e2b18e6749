"""`kunlun calibrate`: measure how to cut this machine's CPUs into engine slots, and keep the fastest split."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kunlun.cli import Command, UsageError
from model.artifact import ArtifactError, open_artifact
from model.cli.console import note
from model.config import save_json
from serving.config import available_cpus
from serving.engines.cache import default_cache
from serving.tuning.calibrate_slots import calibrate, calibration_path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("artifact", type=Path, help="version directory: <repository>/<model>/<version>")
    parser.add_argument("--candidates", type=int, default=100, help="request size to measure with, up to 1024 (default: 100)")
    parser.add_argument("--cpus", type=int, help="CPUs to cut up (default: all this process may use)")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto", help="of the compiled engine")
    parser.add_argument("--cache", type=Path, help="engine cache (default: <repository>/.engines)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure every even split, write ``<model>-<version>.slots.json`` to the engine cache, report."""
    if not 1 <= arguments.candidates <= 1024:
        raise UsageError(f"--candidates: expected 1 to 1024, found {arguments.candidates}")
    if arguments.cpus is not None and arguments.cpus < 1:
        raise UsageError(f"--cpus: expected at least 1, found {arguments.cpus}")
    try:
        artifact = open_artifact(arguments.artifact)
        cache = arguments.cache or default_cache(artifact)
        cpus = arguments.cpus or available_cpus()
        found = calibrate(
            artifact, cache=cache, precision=arguments.precision, cpus=cpus, candidates=arguments.candidates, note=note
        )
    except ArtifactError as error:
        print(f"kunlun calibrate: {error}", file=sys.stderr)
        return 1
    path = calibration_path(cache, artifact)
    save_json(found, path)
    if arguments.json:
        print(json.dumps({"calibration": str(path), **found.model_dump(mode="json")}))
        return 0
    best = found.splits[0]
    print(f"fastest of {cpus} CPU(s): {best.slots} slot(s) × {best.threads} thread(s), written to {path}")
    print("`kunlun serve` uses it where slots and threads-per-slot are left to it.")
    return 0


command = Command("measure how to cut this machine's CPUs into engine slots", configure, run)
