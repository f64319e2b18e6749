"""What `make …-check` targets share: checks one after the other, and one JSON line with `ok` at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model.cli.console import note


@dataclass(frozen=True)
class Check:
    """One promise: the figures, the target in words, and whether it is met."""

    name: str
    figures: dict[str, Any]
    target: str
    ok: bool


def run_checks(steps: Sequence[Callable[[], Check]]) -> int:
    """Run all and print the line; the exit status."""
    checks = []
    for step in steps:
        check = step()
        checks.append(check)
        note(f"[bold]{check.name}[/] {check.figures} ({check.target}: {'met' if check.ok else 'NOT met'})")
    line = {
        "ok": all(check.ok for check in checks),
        "checks": {check.name: check.figures | {"target": check.target, "ok": check.ok} for check in checks},
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1
