"""What every `make …-check` ends with: a line that says no when a step raised, was missing, or did nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from loadtest.checks import deploy
from loadtest.checks.check import Check, run_checks


def met() -> Check:
    return Check("met", {"value": 1}, "1", True)


def line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_line_has_every_figure_and_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks({"met": met}) == 0
    assert line(capsys) == {"ok": True, "checks": {"met": {"value": 1, "target": "1", "ok": True}}}


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("[/not] ready within 5 s"),
        subprocess.CalledProcessError(3, ["envoy"]),
        KeyError("calls"),
    ],
)
def test_a_step_that_raises_is_a_failed_check_and_the_others_run(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def raises() -> Check:
        raise error

    assert run_checks({"raises": raises, "met": met}) == 1
    checks = line(capsys)["checks"]
    assert checks["raises"] == {"error": f"{type(error).__name__}: {error}", "target": "runs to its end", "ok": False}
    assert checks["met"]["ok"]


def test_an_interrupt_ends_everything() -> None:
    def interrupted() -> Check:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_checks({"interrupted": interrupted, "met": met})


def test_no_step_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks({}) == 1
    assert line(capsys) == {"ok": False, "checks": {}}


@pytest.mark.parametrize(
    ("body", "ok", "figures"),
    [
        ("def test_passes(): pass", True, {"status": 0, "passed": 1, "failed": [], "not_verified": {}}),
        ("", False, {"status": 5, "passed": 0, "failed": [], "not_verified": {}}),
        (
            "import pytest\ndef test_passes(): pass\ndef test_skips(): pytest.skip('absent')",
            False,
            {"status": 0, "passed": 1, "failed": [], "not_verified": {"test_skips": "absent"}},
        ),
        (
            "import pytest\ndef test_passes(): pass\n"
            "@pytest.fixture(autouse=True, scope='session')\ndef ends():\n    yield\n    pytest.exit('early', returncode=7)",
            False,
            {"status": 7, "passed": 1, "failed": [], "not_verified": {}},
        ),
    ],
    ids=["passes", "nothing collected", "skipped", "ended early"],
)
def test_tests_of_deployment_count_when_pytest_ends_well_and_some_pass(
    body: str, ok: bool, figures: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "test_generated.py"
    file.write_text(body)
    check = deploy.passed([str(file)])
    assert (check.figures, check.ok) == (figures, ok)
