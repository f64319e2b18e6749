"""The verification table: absent tools are listed, never skipped silently, and what fails is not hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.tensorrt import check, toolkit
from kernels.tensorrt.__main__ import main
from kernels.tensorrt.check import Row, line, table

ROWS = [
    Row("plugin", "compiles", True, "", {"headers": "11.1.0", "megabytes": 12.345}),
    Row("tiny: plan", "a plan is built", False, "no plan"),
    Row("parser", "no error", None, "no headers"),
]


def test_rows_are_verified_failed_or_not_verified() -> None:
    assert table(ROWS).splitlines()[2:] == [
        "| plugin | verified | headers 11.1.0, megabytes 12.3 | compiles |",
        "| tiny: plan | FAILED | no plan | a plan is built |",
        "| parser | not verified | no headers | no error |",
    ]


def test_the_line_is_not_ok_when_a_row_has_failed_and_lists_what_was_not_verified() -> None:
    said = json.loads(line(ROWS, 3.4))
    assert said["ok"] is False
    assert said["plugin"] == {"ok": True, "target": "compiles", "headers": "11.1.0", "megabytes": 12.345}
    assert said["tiny: plan"]["note"] == "no plan"
    assert said["not_verified"] == ["parser: no headers"]
    assert json.loads(line([ROWS[0], ROWS[2]], 0))["ok"] is True


def test_a_machine_without_nvidias_tools_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("TENSORRT_INCLUDE_DIR", "TENSORRT_ROOT", "TENSORRT_RTX_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(toolkit, "SYSTEM_ROOTS", ())
    monkeypatch.setattr(toolkit, "WHEEL", "no_such_wheel")
    assert main(["check", "--skip-tests", "--output", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["ok"] is True
    assert [entry.partition(":")[0] for entry in said["not_verified"]] == ["plugin", "operators", "refusals"]
    assert "set TENSORRT_ROOT to an installation of TensorRT 10 or 11" in said["not_verified"][0]
    assert "pip install 'kunlun-serving[trt-check]'" in said["not_verified"][1]


def test_old_headers_beside_the_rtx_libraries_are_named(tmp_path: Path) -> None:
    headers = toolkit.Headers(tmp_path, (10, 13, 3), tmp_path)
    libraries = toolkit.Libraries("TensorRT-RTX", "1.7.1", tmp_path / "a", tmp_path / "b")
    with pytest.raises(
        toolkit.ToolMissing, match=r"expected those of TensorRT 11 beside TensorRT-RTX 1\.7\.1, .* found 10\.13\.3"
    ):
        check._program(headers, libraries, tmp_path, tmp_path)
