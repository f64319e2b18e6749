"""`python -m kernels.bench`: parity, races, memory errors and speed of every kernel on this machine's GPU.

Writes one Markdown report; the last line of stdout is one JSON object with `ok`. `--dry-run` needs no GPU: it runs the
same script at tiny sizes through Triton's interpreter, where times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="time budget; what does not fit is listed (default %(default)s)"
    )
    parser.add_argument(
        "--report", type=Path, default=Path("runs/gpu_check/report.md"), help="Markdown file (default %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes through the interpreter, without a GPU")
    parser.add_argument("--only", choices=("parity", "races", "speed"), action="append", help="parts to run (default all)")
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    from kernels.bench.check import run_check

    started = time.monotonic()
    parts = set(arguments.only or ("parity", "races", "speed"))
    text, figures = run_check(
        started + 60 * arguments.minutes, arguments.dry_run, parts, " ".join(["python -m kernels.bench", *sys.argv[1:]])
    )
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(text, encoding="utf-8")
    sys.stderr.write(f"report: {arguments.report}\n")
    sys.stdout.write(json.dumps(figures | {"seconds": round(time.monotonic() - started)}) + "\n")
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
