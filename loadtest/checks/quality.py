"""`make quality`: does the model show in NE what it promises?

With `--data`, on a Metarank-format log (`quality_log`): trained, exported, compiled and scored as it would be served, against
the targets of RankLens. Without, on synthetic data, whose truth is known (`quality_synthetic`): the torch twin's
probabilities. The last line is one JSON object with `ok`, the figures and their targets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from loadtest.checks.check import run_checks
from loadtest.checks.quality_log import LogQuality
from loadtest.checks.quality_synthetic import SyntheticQuality

SEEDS = 3


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, help="a Metarank-format log (JSON lines, plain or gzip); default: synthetic data")
    parser.add_argument(
        "--fast",
        action="store_true",
        help=f"one seed instead of {SEEDS}, or a smaller synthetic log with a target of its own: minutes, not up to an hour",
    )
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="work in DIR and leave everything there")
    arguments = parser.parse_args()
    seeds = range(1 if arguments.fast else SEEDS)
    with nullcontext(arguments.workdir) if arguments.workdir else tempfile.TemporaryDirectory(prefix="kunlun-quality-") as path:
        if arguments.data is None:
            return run_checks(SyntheticQuality(Path(path), "fast" if arguments.fast else "full").checks())
        return run_checks(LogQuality(arguments.data, Path(path), seeds).checks())


if __name__ == "__main__":
    sys.exit(main())
