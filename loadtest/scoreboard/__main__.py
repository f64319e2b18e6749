"""`python -m loadtest.scoreboard`: run rows; all of them also rewrite the results table in docs/results.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import openvino as ov

from loadtest.bench import Bench
from loadtest.pipeline import Pipeline
from loadtest.scoreboard.figure import LINES, Row
from loadtest.scoreboard.rows import LATER, ROWS
from model.cli.console import note

RESULTS = Path("docs/results.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scoreboard", description=__doc__)
    parser.add_argument("--row", choices=[r.id for r in ROWS], help="one row (default: all, and rewrite docs/results.md)")
    parser.add_argument("--requests", type=int, default=1000, help="requests per row (default: 1000)")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/bench"), help="where the model is kept (default: runs/bench)"
    )
    parser.add_argument("--soak-s", type=float, default=600.0, help="length of the soak (S11) in seconds (default: 600)")
    parser.add_argument("--front-end", choices=("grpcio", "native"), default="grpcio", help="of the servers (default: grpcio)")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write docs/results.md from what was measured last"
    )
    arguments = parser.parse_args()
    bench = Bench(Pipeline(arguments.workdir), arguments.requests, arguments.soak_s, arguments.front_end)
    chosen = [] if arguments.page else [r for r in ROWS if arguments.row in (None, r.id)]
    lines = [_measure(row, bench) for row in chosen]
    if arguments.row is None:
        RESULTS.write_text(_page(_measured(bench)), encoding="utf-8")
        note(f"wrote {RESULTS}")
    return 0 if all(line["ok"] for line in lines) else 1


def _measure(row: Row, bench: Bench) -> dict[str, Any]:
    note(f"[bold]{row.id}[/] {row.measure}")
    began = time.perf_counter()
    figure = row.run(bench)
    line = {
        "id": row.id,
        "measure": row.measure,
        "value": figure.value,
        "target": row.target,
        "ok": figure.ok,
        "conditions": figure.conditions | {"front_end": bench.front_end, "seconds": round(time.perf_counter() - began, 1)},
    }
    text = json.dumps(line)
    kept = bench.pipeline.workdir / LINES
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{row.id}-{bench.front_end}.json").write_text(text, encoding="utf-8")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return line


def _measured(bench: Bench) -> list[dict[str, Any]]:
    """The last line of every row and front end, in order."""
    lines = [json.loads(file.read_text(encoding="utf-8")) for file in (bench.pipeline.workdir / LINES).glob("*.json")]
    return sorted(lines, key=lambda line: (int(line["id"][1:]), line["conditions"]["front_end"]))


def _machine() -> str:
    """The CPU's capabilities rather than its marketing name, which virtual machines hide."""
    abilities = " ".join(sorted(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii")
    return f"{os.cpu_count()} shared x86-64 CPUs ({abilities}{' AMX' if 'amx_bf16' in flags else ''})"


def _page(lines: list[dict[str, Any]]) -> str:
    measured = {line["id"] for line in lines}
    missing = [*(row.id for row in ROWS if row.id not in measured), *LATER]
    table = ["| row | measure | target | measured | met | conditions |", "|--|--|--|--|--|--|"]
    for line in lines:
        conditions = ", ".join(f"{k} {v}" for k, v in line["conditions"].items())
        met = "yes" if line["ok"] else "**no**"
        table.append(f"| {line['id']} | {line['measure']} | {line['target']} | {line['value']:.3g} | {met} | {conditions} |")
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make bench`; one row alone: `make bench ROW=S13`.",
            f"{_machine()}. Synthetic logs, OpenVINO, embedded store; `tiny` where the conditions name no model.",
            "Speeds are meant as ratios within a row; absolute times are this machine's.",
            "",
            *table,
            "",
            f"Not measured yet: {', '.join(missing)}.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
