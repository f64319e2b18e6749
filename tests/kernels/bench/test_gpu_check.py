"""`python -m kernels.bench`: the whole script at tiny sizes, and what must make it say no."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import dispatch
from kernels.bench import parity
from kernels.bench.device import Ceilings, Machine, datasheet
from kernels.bench.parity import Operation, Parity, compare
from kernels.bench.report import figures, roofline
from kernels.bench.run import Result
from kernels.bench.sanitizer import Sanitized, _wait
from kernels.bench.timing import Timing
from kernels.dispatch import window_attention
from kernels.window.reference import window_attention_jagged

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("status", "said"), [(1, "failed with 1 and was not seen whole"), (86, "SUMMARY: 2 hazards")])
def test_a_program_that_fails_under_a_sanitizer_is_no_finding_of_the_tool(status: int, said: str) -> None:
    command = [sys.executable, "-c", f"print('=== SUMMARY: 2 hazards'); raise SystemExit({status})"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, start_new_session=True)
    verdict = _wait("racecheck", process, time.monotonic(), time.monotonic() + 60)
    assert verdict.ok is False
    assert said in verdict.detail
    assert ("not seen whole" in verdict.detail) == (status == 1)


@pytest.mark.slow
def test_a_dry_run_covers_every_operator_and_ends_with_one_json_line(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    command = [sys.executable, "-m", "kernels.bench", "--dry-run", "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["ok"] is True
    assert line["not_measured"] == []
    text = report.read_text(encoding="utf-8")
    for operator in ("gdpa", "pffn", "window_attention", "seed_pooling"):
        for direction in ("forward", "backward"):
            measured = [figures for name, figures in line["kernels"].items() if name.startswith(f"{operator} {direction}:")]
            assert measured, (operator, direction)
            assert all(figures["error"] < 1.5e-2 for figures in measured)
        assert f"### {operator}" in text


def test_without_a_gpu_it_says_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, "-m", "kernels.bench"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected a CUDA device, found none; `--dry-run` exercises the script" in done.stderr


@pytest.mark.parametrize(("planted", "ok"), [(0.0, True), (0.05, False), (float("nan"), False)])
def test_parity_passes_the_right_operator_and_no_wrong_one(planted: float, ok: bool) -> None:
    offsets = torch.tensor([0, 9, 9, 14], dtype=torch.int32)
    operation = Operation(
        "planted",
        ((14, 2, 8),) * 3,
        lambda q, k, v: window_attention(q, k, v, offsets, 3) + planted * v,
        lambda q, k, v: window_attention_jagged(q, k, v, offsets, 3)[0],
    )
    assert all(compare(operation, dtype, "cpu").ok is ok for dtype in (torch.float32, torch.bfloat16))


def test_roofline_is_the_larger_of_arithmetic_and_memory_time() -> None:
    ceilings = Ceilings(tflops=1000.0, tbs=2.0, source="data sheet")
    timing = Timing(2e-3, 2e-3, 2e-3, 1, 1)
    result = Result("gdpa", "case", "triton", "forward", timing=timing, flops=1e12, moved=1e9)
    assert roofline(result, ceilings) == pytest.approx(0.5)  # 1 ms of arithmetic
    memory_bound = Result("gdpa", "case", "triton", "forward", timing=timing, flops=1e11, moved=2e9)
    assert roofline(memory_bound, ceilings) == pytest.approx(0.5)  # 1 ms of reading and writing


@pytest.mark.parametrize(
    ("name", "tflops", "tbs"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0, 3.35),
        ("NVIDIA H100 PCIe", 756.0, 2.0),
        ("NVIDIA GH200 480GB", 989.0, 4.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 2.039),
        ("NVIDIA L4", 121.0, 0.3),
    ],
)
def test_the_data_sheet_is_found_by_the_drivers_name(name: str, tflops: float, tbs: float) -> None:
    found = datasheet(name)
    assert found is not None
    assert (found.tflops, found.tbs) == (tflops, tbs)


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA A10G", "NVIDIA RTX A1000", "NVIDIA T4"])
def test_a_gpu_has_no_data_sheet_of_another(name: str) -> None:
    assert datasheet(name) is None


def test_ok_is_about_the_parts_that_were_asked_for() -> None:
    machine = Machine("cuda", {"device": "a GPU"}, (Ceilings(1.0, 1.0, "measured"),), 1)
    good, bad = (Parity("gdpa", "float32", {"out": error}, {"out": 1.0}) for error in (0.5, 2.0))
    slow = Result("gdpa", "case", "triton", "forward", failure="out of memory")
    clean, raced = Sanitized("racecheck", True, ""), Sanitized("racecheck", False, "")
    for parts, parities, sanitized, results, ok in (
        ({"parity"}, [good], [], [], True),
        ({"parity"}, [good, bad], [], [], False),
        ({"parity"}, [], [], [], False),
        ({"races"}, [], [clean], [], True),
        ({"races"}, [], [raced], [], False),
        ({"speed"}, [], [], [slow], False),
        ({"parity", "races", "speed"}, [], [clean], [], False),
    ):
        assert figures(machine, parts, parities, sanitized, results, [])["ok"] is ok, (parts, parities, sanitized, results)


def test_parity_runs_the_kernels_also_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run that compared plain forms with themselves could not fail."""
    backends: dict[str, set[str]] = {}
    for name in ("gdpa", "pffn", "window_attention", "seed_pooling"):
        plain = getattr(dispatch, name)

        def watched(*given: object, name: str = name, plain: Callable[..., Tensor] = plain, backend: str = "auto") -> Tensor:
            backends.setdefault(name, set()).add(backend)
            return plain(*given, backend="reference")

        monkeypatch.setattr(parity, name, watched)
    for operation in parity.operations("cpu", True):
        operation.operator(*(torch.zeros(shape) for shape in operation.shapes))
    assert backends == {name: {"triton"} for name in ("gdpa", "pffn", "window_attention", "seed_pooling")}
