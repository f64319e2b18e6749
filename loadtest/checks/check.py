"""What `make …-check` targets share: checks one after the other, and one JSON line with `ok` at the end."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from model.cli.console import note

ERROR_LENGTH = 2000
"""Characters of an error that are kept, the last ones."""


@dataclass(frozen=True)
class Check:
    """One promise: the figures, the target in words, and whether it is met."""

    name: str
    figures: dict[str, Any]
    target: str
    ok: bool


def run_checks(steps: Mapping[str, Callable[[], Check]]) -> int:
    """Run all and print the line; the exit status.

    A step that raises is a failed check of its name here, and the others still run. No step at all is a failure, too.
    """
    checks = []
    for name, step in steps.items():
        check = _outcome(name, step)
        checks.append(check)
        said = escape(f"{check.figures} ({check.target}: {'met' if check.ok else 'NOT met'})")
        note(f"[bold]{escape(check.name)}[/] {said}")
    line = {
        "ok": bool(checks) and all(check.ok for check in checks),
        "checks": {check.name: check.figures | {"target": check.target, "ok": check.ok} for check in checks},
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1


def _outcome(name: str, step: Callable[[], Check]) -> Check:
    try:
        return step()
    except Exception as error:  # whatever it is belongs into the line
        traceback.print_exc()
        return Check(name, {"error": f"{type(error).__name__}: {error}"[-ERROR_LENGTH:]}, "runs to its end", False)
