"""docs/balancing.md: what is written by hand, around the tables of what was measured last."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from loadtest.balancer.scenario import SCENARIOS
from loadtest.scoreboard.figure import LINES
from model.cli.console import note

PAGE = Path("docs/balancing.md")
BEGIN, END = "<!-- measured: python -m loadtest.checks.balancer --page -->", "<!-- end -->"
HEADER = "| what happens | balancer | target | met | calls | failed | repeated | p50, p99 ms | besides |\n" + "|--" * 9 + "|"
COMMON = {"calls", "failed", "codes", "p50_ms", "p99_ms", "repeated"}


def write_page(kept: Path, workdir: Path, page: Path = PAGE) -> None:
    """Put the tables of `kept`, and the last S9 of the scoreboard, in place of those on the page.

    Raises `ValueError` when the page does not say where they belong.
    """
    text = page.read_text(encoding="utf-8")
    if not (text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)):
        raise ValueError(f"{page}: expected one line {BEGIN!r} and after it one {END!r}, found otherwise; put them back")
    parts = [*_tables(_lines(kept.glob("*.json"))), *(_s9(line) for line in _lines((workdir / LINES).glob("S9-*.json")))]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + "\n".join([BEGIN, "\n\n".join(parts), END]) + after, encoding="utf-8")
    note(f"wrote {page}")


def _lines(files: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(files)]


def _tables(lines: list[dict[str, Any]]) -> list[str]:
    """One table for what was measured alike: usually one in all."""
    order = {scenario.name: at for at, scenario in reversed(list(enumerate(SCENARIOS)))}
    lines = sorted(lines, key=lambda line: (_conditions(line), order[line["scenario"]], line["balancer"]))
    found = []
    for said, same in groupby(lines, key=_conditions):
        alike = list(same)
        versions = sorted({f"{line['balancer']} {line['version']}" for line in alike})
        found.append(f"{said}, {', '.join(versions)}:")
        found.append("\n".join([HEADER, *(row for line in alike for row in _rows(line))]))
    return found


def _conditions(line: dict[str, Any]) -> str:
    command = f"python -m loadtest.checks.balancer --calls {line['calls']} --rate {line['rate']:g}"
    return f"`{command}` (`make balancer-check`), calls drawn with seed {line['seed']}, {line['date']}"


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
