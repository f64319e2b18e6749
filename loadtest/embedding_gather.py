"""`python -m loadtest.embedding_gather`: what gathering embedding rows from memory-mapped tables costs a Rank.

Tables of several sizes are written as the exporter writes them and opened as the server opens them. Rows of one
request are drawn at random, so large tables miss every CPU cache, as ids do. Ratios to the smallest table tell what
size costs; pages are in memory (a table that does not fit pays for the disk instead). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from model.cli.console import note

WIDTH, CANDIDATES, REQUESTS, SEED = 16, 256, 2000, 20_261_125


def microseconds(rows: int, directory: Path) -> float:
    """Median time of gathering `CANDIDATES` random rows [rows, WIDTH] float32 from a mapped file."""
    path, rng = directory / "table.npy", np.random.default_rng(SEED)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, WIDTH))
    for start in range(0, rows, 1 << 20):
        written[start : start + (1 << 20)] = rng.standard_normal((min(1 << 20, rows - start), WIDTH), dtype=np.float32)
    written.flush()
    del written
    table = np.asarray(np.load(path, mmap_mode="r"))
    ids = rng.integers(0, rows, (REQUESTS, CANDIDATES))
    table[::64].sum()  # every page is mapped, as after a while of serving
    seconds = []
    for request in ids:
        began = time.perf_counter()
        table[request]
        seconds.append(time.perf_counter() - began)
    path.unlink()
    return 1e6 * float(np.median(seconds))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.embedding_gather", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 8_000_000], help="table sizes")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        for rows in arguments.rows:
            figures[rows] = round(microseconds(rows, Path(directory)), 1)
            note(f"{rows:>12,} rows ({rows * WIDTH * 4 / 1e6:,.0f} MB): {figures[rows]:.1f} µs per {CANDIDATES} candidates")
    smallest = figures[min(figures)]
    line = {"us_per_request": figures, "ratio_to_smallest": {rows: round(us / smallest, 2) for rows, us in figures.items()}}
    sys.stdout.write(json.dumps(line | {"candidates": CANDIDATES, "width": WIDTH, "ok": True}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
