"""`make kernels-check`: everything about the kernels that can be known without a GPU, and a list of what cannot.

Executed: the kernels' tests, Triton's interpreter running every kernel on the CPU. Compiled: every shipped variant for every
compute capability. Checked: no spills, the committed report is that of these kernels, the launcher library links, loads
and refuses without a driver. Measured: what fraction of a CPU's peak the graph forms reach. The last line is one JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels.aot import build, report
from kernels.aot.compiler import Compiled
from kernels.aot.library import GDPAParams, KernelError, KernelLibrary, Status
from kernels.aot.targets import TARGETS

WAITING = (
    "running the cubins: `make gpu-check` (parity, races, memory errors) on each compute capability",
    "the measured share of the roofline, beside the expected one of docs/kernels_static.md: `make gpu-check`",
    "the driver's compiler on the PTX of newer GPUs",
)
TARGETS_IN_WORDS = {
    "executed": "every test of tests/kernels passes, kernels in Triton's interpreter",
    "compiled": f"every variant for {', '.join(f'sm_{t.sm}' for t in TARGETS)}",
    "report": "no spills, every block fits, tensor cores everywhere, docs/kernels_static.md is up to date",
    "library": "links without a toolkit, holds every variant, loads without a driver and says what is missing",
    "cpu": "the fractions of a CPU's peak that the graph forms reach meet their own targets",
}


def executed(tests: Path, folder: Path) -> dict[str, Any]:
    """Runs the tests of the kernels in a process of their own."""
    results = folder / "tests.xml"
    folder.mkdir(parents=True, exist_ok=True)
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-rN", f"--junitxml={results}", str(tests)]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if not results.exists():  # pytest did not get as far as running anything
        return {"ok": False, "tests": 0, "status": done.returncode}
    suite = next(ElementTree.parse(results).getroot().iter("testsuite"))
    count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    return {"ok": done.returncode == 0 and count["tests"] > 0, **count, "seconds": round(float(suite.get("time", "0")))}


def compiled_figures(compiled: Sequence[Compiled], expected: int) -> dict[str, Any]:
    """How much was compiled, and with which tensor-core instructions."""
    kinds = Counter(f"sm_{unit.job.sm} {unit.code.tensor_kind}" for unit in compiled)
    variants = {unit.job.variant.name for unit in compiled}
    return {
        "ok": len(compiled) == expected,
        "kernels": len(compiled),
        "variants": len(variants),
        "tensor_instructions": dict(sorted(kinds.items())),
        "max_registers": max(unit.info.registers for unit in compiled),
    }


def checked_report(compiled: Sequence[Compiled], path: Path) -> dict[str, Any]:
    """Faults of the compiled kernels, and whether the committed report is theirs."""
    found = [problem for unit in compiled for problem in report.problems(unit)]
    current = path.exists() and path.read_text(encoding="utf-8") == report.markdown(compiled)
    for problem in found:
        _say(f"  {problem}")
    if not current:
        _say(f"  {path} is not that of these kernels: run `python -m kernels.aot report`")
    spilling = sum(unit.info.stack_bytes > 0 for unit in compiled)
    return {"ok": not found and current, "faults": len(found), "spilling": spilling, "up_to_date": current}


def checked_library(compiled: Sequence[Compiled], folder: Path, version: str) -> dict[str, Any]:
    """Links the library of what was compiled and asks it everything that needs no GPU."""
    path = build.link_library(compiled, folder, version)
    library = KernelLibrary(path.resolve())
    held = library.manifest()["variants"]
    expected: dict[str, set[int]] = {}
    for unit in (u for u in compiled if u.job.cubin):
        expected.setdefault(unit.job.variant.name, set()).add(unit.job.sm)
    complete = {name: set(entry["sm"]) for name, entry in held.items()} == expected
    refusals = {"bad struct": _refusal(library, version=0), "bad width": _refusal(library, head_width=0)}
    refused = refusals == {"bad struct": Status.BAD_VERSION, "bad width": Status.INVALID_ARGUMENT}
    try:
        library.prepare_all()
        without_driver = "this machine has a GPU"
    except KernelError as error:
        without_driver = error.status.name.lower()
    known = without_driver in ("no_driver", "no_context", "this machine has a GPU")
    return {
        "ok": complete and refused and known,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "variants": len(held),
        "without_driver": without_driver,
    }


def _refusal(library: KernelLibrary, **fields: int) -> Status:
    params = GDPAParams(heads=1, head_width=64, n_kv=64)
    for name, value in fields.items():
        setattr(params, name, value)
    try:
        library.prepare(params)
    except KernelError as error:
        return error.status
    return Status.OK


def measured_on_cpu(module: str | None) -> dict[str, Any] | None:
    """Runs a module that measures them; the last line of its output is one JSON object with `ok`. None without a module."""
    if module is None or importlib.util.find_spec(module) is None:
        return None
    done = subprocess.run([sys.executable, "-m", module], stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    figures: dict[str, Any] = json.loads(lines[-1]) if lines else {"ok": False}
    return figures | {"ok": bool(figures.get("ok")) and done.returncode == 0}


def closing_line(parts: dict[str, dict[str, Any] | None], started: float) -> dict[str, Any]:
    """The JSON object; a part that is None could not be had and is listed as waiting."""
    waiting = list(WAITING) + [f"{name}: {TARGETS_IN_WORDS[name]}" for name, part in parts.items() if part is None]
    had = {name: part for name, part in parts.items() if part is not None}
    return {
        "ok": all(part["ok"] for part in had.values()),
        **{name: part | {"target": TARGETS_IN_WORDS[name]} for name, part in had.items()},
        "waiting_for_hardware": waiting,
        "seconds": round(time.monotonic() - started),
    }


def say_part(name: str, part: dict[str, Any] | None) -> None:
    """One line for the person watching."""
    _say(f"{name}: {'not here yet' if part is None else part} ({TARGETS_IN_WORDS[name]})")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
