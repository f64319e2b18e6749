"""`make kernels-check` on a subset: each part says what is wrong, and the closing line sums up."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from kernels.aot import __main__ as command
from kernels.aot import check, report
from kernels.aot.compiler import Compiled
from kernels.aot.jobs import selected_jobs


def test_compiled_kernels_are_counted_by_instruction(compiled: list[Compiled]) -> None:
    figures = check.compiled_figures(compiled, len(compiled))
    assert figures["ok"]
    assert figures["tensor_instructions"] == {"sm_100 UTCHMMA": 5, "sm_80 HMMA": 5, "sm_90 HGMMA": 5}
    assert not check.compiled_figures(compiled, len(compiled) + 1)["ok"]


def test_a_report_that_is_not_of_these_kernels_fails(compiled: list[Compiled], tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    assert not check.checked_report(compiled, path)["ok"]
    path.write_text(report.markdown(compiled), encoding="utf-8")
    assert check.checked_report(compiled, path) == {"ok": True, "faults": 0, "spilling": 0, "up_to_date": True}
    spilling = dataclasses.replace(compiled[0], info=dataclasses.replace(compiled[0].info, stack_bytes=16))
    figures = check.checked_report([spilling, *compiled[1:]], path)
    assert (figures["ok"], figures["faults"], figures["spilling"]) == (False, 1, 1)


def test_the_linked_library_holds_what_was_compiled(compiled: list[Compiled], build_folder: Path) -> None:
    figures = check.checked_library(compiled, build_folder, "0.0.0")
    assert figures["ok"]
    assert figures["variants"] == 5


def test_tests_are_executed_and_counted(tmp_path: Path) -> None:
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text("def test_one(): pass\n\ndef test_two(): pass\n")
    bad.write_text("def test_three(): assert False\n")
    passed = check.executed(good, tmp_path / "out")
    assert (passed["ok"], passed["tests"], passed["failures"]) == (True, 2, 0)
    assert not check.executed(bad, tmp_path / "out")["ok"]
    assert check.executed(tmp_path / "test_absent.py", tmp_path / "out")["ok"] is False


def test_cpu_fractions_come_from_the_closing_line_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measured_here.py").write_text("print('words')\nprint('{\"ok\": true, \"fraction\": 0.7}')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    assert check.measured_on_cpu("measured_here") == {"ok": True, "fraction": 0.7}
    assert check.measured_on_cpu("no_such_module") is None
    assert check.measured_on_cpu(None) is None


def test_the_closing_line_is_ok_when_every_part_is_and_names_what_waits() -> None:
    line = check.closing_line({"compiled": {"ok": True, "kernels": 9}, "cpu": None}, 0.0)
    assert line["ok"]
    assert line["compiled"] == {"ok": True, "kernels": 9, "target": check.TARGETS_IN_WORDS["compiled"]}
    assert any("cpu" in waiting for waiting in line["waiting_for_hardware"])
    assert not check.closing_line({"compiled": {"ok": False}}, 0.0)["ok"]


@pytest.mark.parametrize("fresh", [True, False])
def test_the_command_ends_with_one_json_line(
    compiled: list[Compiled],
    build_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fresh: bool,
) -> None:
    """Over the subset: everything comes from the cache, and a report that was not regenerated is the one fault."""
    path = tmp_path / "report.md"
    path.write_text(report.markdown(compiled) if fresh else "of other kernels", encoding="utf-8")
    monkeypatch.setattr(report, "PATH", path)
    monkeypatch.setattr(command, "selected_jobs", lambda: [unit.job for unit in compiled])
    assert command.main(["check", "--skip-tests", "--output", str(build_folder)]) == (0 if fresh else 1)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["ok"], line["report"]["up_to_date"], line["compiled"]["kernels"]) == (fresh, fresh, len(compiled))
    assert line["library"]["ok"]
    assert "cpu" not in line


def test_a_selection_without_variants_is_refused() -> None:
    with pytest.raises(ValueError, match="--only gdpa_int8: no variant has such a name"):
        selected_jobs([90], ["gdpa_int8"])


def test_a_command_that_cannot_be_done_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["build", "--sm", "75"]) == 1
    assert capsys.readouterr().err == "python -m kernels.aot build: sm: expected one of 80, 86, 89, 90, 100, 120, found 75\n"
