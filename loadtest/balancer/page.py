"""docs/balancing.md: what is written by hand, around the tables of what was measured last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtest.balancer.scenario import SCENARIOS
from loadtest.scoreboard.figure import LINES
from model.cli.console import note

PAGE = Path("docs/balancing.md")
BEGIN, END = "<!-- measured: python -m loadtest.checks.balancer --page -->", "<!-- end -->"
HEADER = "| what happens | balancer | target | met | calls | failed | repeated | p50, p99 ms | besides |\n" + "|--" * 9 + "|"
COMMON = {"calls", "failed", "codes", "p50_ms", "p99_ms", "repeated"}


def write_page(kept: Path, workdir: Path) -> None:
    """Put the tables of `kept`, and the last S9 of the scoreboard, in place of those on the page."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in kept.glob("*.json")]
    order = {scenario.name: at for at, scenario in enumerate(SCENARIOS)}
    rows = [row for line in sorted(found, key=lambda f: (order[f["scenario"]], f["balancer"])) for row in _rows(line)]
    rows += ["", *(_s9(json.loads(file.read_text(encoding="utf-8"))) for file in (workdir / LINES).glob("S9-*.json"))]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + "\n".join([BEGIN, HEADER, *rows, END]) + after, encoding="utf-8")
    note(f"wrote {PAGE}")


def _s9(line: dict[str, Any]) -> str:
    conditions = line["conditions"]
    others = ", ".join(f"{key} {value}" for key, value in conditions.items() if key != "calls")
    return f"`make bench ROW=S9`: {line['value']} of {conditions['calls']:,} calls failed ({others})."


def _rows(line: dict[str, Any]) -> list[str]:
    figures, met = line["figures"], "yes" if line["ok"] else "**no**"
    runs = figures if "calls" not in figures else {"": figures}
    rows = []
    for name, run in runs.items():
        besides = ", ".join(f"{key} {value}" for key, value in run.items() if key not in COMMON)
        what = line["scenario"] + (f", {name}" if name else "")
        cells = [what, line["balancer"], line["target"], met, run["calls"], run["failed"], run.get("repeated", "")]
        rows.append("| " + " | ".join(str(c) for c in [*cells, f"{run['p50_ms']}, {run['p99_ms']}", besides]) + " |")
    return rows
