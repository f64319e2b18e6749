"""Documentation that must keep up with what it describes: every alert has its section, every link and file its target."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.prometheus_process import RULES

ROOT = Path(__file__).parents[2]
OPERATE = ROOT / "docs" / "operate.md"
PAGES = ("clients.md", "deploy.md", "operate.md")


def alerts() -> list[dict[str, Any]]:
    groups = [group for file in sorted(RULES.glob("*.rules.yaml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_has_its_section_and_says_so() -> None:
    assert len(alerts()) > 15
    for rule in alerts():
        name, notes = rule["alert"], rule["annotations"]
        assert notes["runbook"] == f"docs/operate.md#{name.lower()}", name
        assert name.lower() in anchors(OPERATE), name
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert notes["summary"].endswith("."), name


def test_every_section_of_the_runbook_is_of_an_alert_that_exists() -> None:
    written = set(re.findall(r"^### (Kunlun\w+)$", OPERATE.read_text(), re.MULTILINE))
    assert written == {rule["alert"] for rule in alerts()}


def test_every_alert_has_a_promtool_test_that_makes_it_fire() -> None:
    tests = [test for file in RULES.glob("*.test.yaml") for test in yaml.safe_load(file.read_text())["tests"]]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case.get("exp_alerts")}
    assert {rule["alert"] for rule in alerts()} <= fired


def test_metrics_named_in_the_runbook_exist() -> None:
    sources = "\n".join(file.read_text() for file in (ROOT / "serving").rglob("*.py"))
    sources += "\n".join(file.read_text() for file in RULES.glob("*.rules.yaml"))
    named = set(re.findall(r"\bkunlun[_:][a-z0-9_:]+", OPERATE.read_text()))
    prefixes = ("kunlun_online_", "kunlun_feedback_", "kunlun_canary_")  # put together from parts
    for name in named:
        assert name.startswith(prefixes) or name.removesuffix("_total") in sources, name


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / "docs" / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("name", PAGES)
def test_files_named_in_code_exist(name: str) -> None:
    found = re.findall(
        r"\b((?:deploy|examples|loadtest|serving|proto|tests|docs)/[\w./-]*[\w/])", (ROOT / "docs" / name).read_text()
    )
    for path in found:
        assert (ROOT / path).exists(), path
