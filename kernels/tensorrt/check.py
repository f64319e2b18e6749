"""What can be known about the TensorRT path without a GPU, as rows of one table; absent tools give rows, too, that say so.

Kernel level: the tests of nodes, loader and plugin; the plugin compiled against the headers at hand; every operator in every
type before NVIDIA's parser, and a plan built on the CPU. `loadtest.checks.tensorrt` adds whole models and is `make trt-check`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx

from kernels.aot.build import compile_jobs
from kernels.aot.catalogue import variants
from kernels.aot.check import executed
from kernels.aot.codegen import write_sources
from kernels.aot.compiler import Job
from kernels.tensorrt.bodies import TYPES
from kernels.tensorrt.build import build_check, build_plugin
from kernels.tensorrt.examples import model_of, profiles, unchecked
from kernels.tensorrt.loader import find_plugin
from kernels.tensorrt.nodes import GDPA, PFFN, Node, SeedPooling, WindowAttention
from kernels.tensorrt.parser import Findings, Profile, ask
from kernels.tensorrt.toolkit import Headers, Libraries, ToolMissing, find_headers, find_libraries

HEADS, WIDTH, N_KV = 2, 64, 64  # sizes that are shipped in all three types
NODES: tuple[Node, ...] = (
    GDPA(n_kv=N_KV, indexed=1),
    GDPA(),
    PFFN(n_kv=N_KV, max_length=256),
    WindowAttention(50, WIDTH**-0.5, max_length=256),
    SeedPooling(WIDTH**-0.5),
)
FAULTS: tuple[tuple[Node, dict[str, Any], str], ...] = (
    (NODES[0], {"activation": "tanh"}, "GDPA: activation: expected one of"),
    (NODES[2], {"n_kv": -1}, "PFFN: n_kv: expected 0 to"),
    (NODES[2], {"eps": 0.0}, "PFFN: eps: expected a number above 0"),
    (NODES[3], {"window": -1}, "WindowAttention: window: expected 0 to"),
    (NODES[4], {"scale": 0.0}, "SeedPooling: scale: expected a number above 0"),
)


@dataclass(frozen=True)
class Row:
    """One line of the verification table. `ok` None: not verified, `note` says why."""

    what: str
    target: str
    ok: bool | None
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> Literal["verified", "FAILED", "not verified"]:
        """In words."""
        return "not verified" if self.ok is None else "verified" if self.ok else "FAILED"


@dataclass(frozen=True)
class Tools:
    """What is here of NVIDIA's, and what was built with it; `missing` says why something is None."""

    headers: Headers | None
    libraries: Libraries | None
    plugin: Path | None
    program: Path | None
    missing: str

    def ask(self, model: onnx.ModelProto | Path, sizes: Sequence[Profile] = ()) -> Findings:
        """What the parser says of a model, and with `sizes` the builder; only where nothing is missing."""
        assert self.program is not None
        assert self.libraries is not None
        assert self.plugin is not None
        if isinstance(model, Path):
            return ask(self.program, self.libraries, self.plugin, model, sizes)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            return ask(self.program, self.libraries, self.plugin, path, sizes)


def gather(folder: Path) -> Tools:
    """Finds NVIDIA's tools and builds a plugin and the check program in `folder`.

    The plugin holds the smallest kernels alone, which is enough for everything that needs no GPU. Raises `RuntimeError` where
    something fails to compile.
    """
    headers, libraries, plugin, program = None, None, None, None
    missing: list[str] = []
    try:
        headers = find_headers()
        plugin = build_plugin(headers, _smallest_kernels(folder), folder)
    except ToolMissing as error:
        missing.append(str(error))
    try:
        libraries = find_libraries(folder / "libraries")
        if headers is not None and plugin is not None:
            program = _program(headers, libraries, folder / "generated", folder)
    except ToolMissing as error:
        missing.append(str(error))
    return Tools(headers, libraries, plugin, program, "; ".join(missing))


def kernel_rows(tools: Tools, tests: Path | None, folder: Path) -> Iterable[Row]:
    """The rows of this level, one by one; `tests` None: without the tests."""
    if tests is not None:
        yield _tested(tests, folder)
    yield _compiled(tools)
    yield _operators(tools)
    yield _refusals(tools)


def line(rows: Sequence[Row], seconds: float) -> str:
    """The JSON object that a check ends with: `ok` where nothing failed, and what was not verified beside it."""
    said: dict[str, Any] = {"ok": all(row.ok is not False for row in rows)}
    for row in rows:
        if row.ok is not None:
            note = {"note": row.note} if row.note else {}
            said[row.what] = {"ok": row.ok, "target": row.target, **row.figures, **note}
    said["not_verified"] = [f"{row.what}: {row.note}" for row in rows if row.ok is None]
    return json.dumps(said | {"seconds": round(seconds)})


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| what | result | figures | target |", "|--|--|--|--|"]
    for row in rows:
        figures = ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in row.figures.items())
        lines.append(
            f"| {row.what} | {row.result} | {'; '.join(part for part in (figures, row.note) if part)} | {row.target} |"
        )
    return "\n".join(lines)


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _smallest_kernels(folder: Path) -> Path:
    """Sources of those of the preset `tiny`; compiled once, written anew each time, so never older than the code."""
    jobs = [Job(v, 80) for v in variants(80) if f"f32_h{HEADS}x16" in v.name]
    write_sources(compile_jobs(jobs, folder), folder / "generated", "0+check")
    return folder / "generated"


def _program(headers: Headers, libraries: Libraries, generated: Path, folder: Path) -> Path:
    if libraries.product == "TensorRT-RTX" and headers.version[0] < 11:
        raise ToolMissing(
            f"headers for the parser: expected those of TensorRT 11 beside {libraries.product} "
            f"{libraries.version}, whose interface they have; found {'.'.join(map(str, headers.version))}"
        )
    return build_check(headers, generated, folder)


def _tested(tests: Path, folder: Path) -> Row:
    found = executed(tests, folder)
    note = f"{found['skipped']} tests wait for NVIDIA's headers or libraries" if found["skipped"] else ""
    target = "every test passes: function bodies on ONNX Runtime and OpenVINO against the plain forms, loader, plugin"
    return Row("tests", target, found.pop("ok"), note, found)


def _compiled(tools: Tools) -> Row:
    what, target = "plugin", "compiles without a warning against headers of TensorRT 10 or 11, says what it holds"
    if tools.plugin is None or tools.headers is None:
        return Row(what, target, None, tools.missing)
    library = find_plugin(tools.plugin)
    version = ".".join(map(str, tools.headers.version))
    figures = {"headers": version, "kernels": len(library.kernels), "megabytes": round(library.path.stat().st_size / 1e6, 1)}
    return Row(what, target, library.tensorrt == version, "", figures)


def _operators(tools: Tools) -> Row:
    what, target = "operators", "each in f32, f16 and bf16: parsed as a plugin, shapes inferred, restored as it was, in a plan"
    if tools.program is None or tools.libraries is None:
        return Row(what, target, None, tools.missing)
    problems, bytes_ = [], []
    for node in NODES:
        for dtype in TYPES:
            model = model_of([node], dtype, HEADS, WIDTH)
            found = tools.ask(model, profiles(model, samples=8, rows=256, n_kv=getattr(node, "n_kv", 0)))
            expected = (dtype, (*((-1, -1) if isinstance(node, SeedPooling) else (-1,)), HEADS, WIDTH))
            wrong = found.problems()
            if [p.operator for p in found.plugins] != [node.op_type] or found.outputs.get("out_0") != expected:
                wrong.append(f"expected one plugin with the output {expected}, found {found.plugins}, {found.outputs}")
            if found.plan_bytes is None:
                wrong.append(f"no plan: {'; '.join(found.messages)}")
            problems += [f"{node.op_type} {dtype}: {text}" for text in wrong]
            bytes_.append(found.plan_bytes or 0)
    figures = {"parser": f"{tools.libraries.product} {tools.libraries.version}", "plans": sum(size > 0 for size in bytes_)}
    return Row(what, target, not problems, "; ".join(problems), figures | {"of": len(bytes_)})


def _refusals(tools: Tools) -> Row:
    what, target = "refusals", "attributes that do not fit are refused in words that name attribute, expected and found"
    if tools.program is None:
        return Row(what, target, None, tools.missing)
    silent = []
    for node, change, expected in FAULTS:
        found = tools.ask(unchecked([node], [node.attributes | change], "f32", HEADS, WIDTH))
        if found.parsed or not any(expected in text for text in (*found.messages, *found.errors)):
            silent.append(f"{node.op_type} with {change}: expected {expected!r}, found {found.errors or 'no error'}")
    return Row(what, target, not silent, "; ".join(silent), {"refused": len(FAULTS) - len(silent), "of": len(FAULTS)})
