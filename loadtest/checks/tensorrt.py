"""`make trt-check`: everything about the TensorRT path that needs no GPU, from plugin to whole models.

First the rows of `kernels.tensorrt.check`. Then, for the presets `tiny`, `small` and `ref-m` with random weights: every form
that is exported against the torch twin on ONNX Runtime and OpenVINO (where our operators run as function bodies), the typed
graphs and whether a kernel is shipped for each of their nodes, NVIDIA's parser on them, and a plan built on the CPU. What
cannot be had here is listed as not verified. The last line is one JSON object; `--page` writes docs/tensorrt_verification.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from onnx import ModelProto, inliner

from kernels.tensorrt import check
from kernels.tensorrt.bodies import attributes_of, nodes_of
from kernels.tensorrt.check import Row, Tools
from kernels.tensorrt.coverage import problem
from kernels.tensorrt.nodes import parse
from kernels.tensorrt.parser import Profile
from model.architectures.graphs import EncodeGraph, ScoreGraph
from model.architectures.registry import load_preset
from model.cli.console import note
from model.data.synthetic import CART, CLICK, synthetic_schema
from model.export.graphs import export_graph, export_jagged
from model.jagged_inputs import jagged_inputs
from model.layers.served_form import served_form
from model.signature import GraphSignature
from serving.engines.tensorrt.typed_graph import element_types, typed_graph

PAGE = Path("docs/tensorrt_verification.md")
PADDED = "encode_user on padded rows"
SEED, BOUND = 20_261_126, 1e-5
"""Largest relative error (L2) of a form in f32 against the twin."""
GPU_ONLY = (
    "running an engine: parity per layer and end to end, latency with and without CUDA graphs, refit, rank flips and NE of 16 "
    "bits, memory (`make gpu-check` on a machine with TensorRT)",
    "what TensorRT's own builder makes of the graphs: parser and builder here are those of TensorRT for RTX",
)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """A preset, the precision it is built in, the longest history, and users and candidates of the batch that is compared."""

    preset: str
    precision: str
    cap: int
    users: int = 3
    candidates: int = 40


CASES = (Case("tiny", "f32", 24), Case("small", "bf16", 200), Case("ref-m", "bf16", 1000, users=2))


@dataclass(frozen=True)
class Form:
    """An exported graph with inputs, and what the twin makes of them."""

    name: str
    model: ModelProto
    inputs: Arrays
    wanted: Arrays


@torch.no_grad()
def forms(case: Case) -> Iterator[Form]:
    """`encode_user` on padded and on jagged rows, and `score_candidates`, of one random model. One at a time: `ref-m` has
    300 M weights, and a graph holds a copy of its own."""
    torch.manual_seed(SEED)
    schema, rng = synthetic_schema(case.cap), np.random.default_rng(SEED)
    encode, score = load_preset(case.preset).graphs(schema)
    sizes = {"U": case.users, "R": case.users, "C": case.candidates, f"T_{CLICK}": case.cap, f"T_{CART}": max(1, case.cap // 2)}
    padded = random_inputs(encode.signature, sizes, rng)
    states = _twin(encode.eval(), padded)
    scoring = random_inputs(score.signature, sizes, rng) | states
    jagged = jagged_inputs(padded, [event.name for event in schema.events])
    yield Form(PADDED, export_graph(encode, encode.signature, _tensors(padded)), padded, states)
    yield Form("encode_user on jagged rows", export_jagged(encode, _tensors(jagged)), jagged, states)
    wanted = _twin(score.eval(), scoring)
    yield Form("score_candidates", export_graph(score, score.signature, _tensors(scoring)), scoring, wanted)


def random_inputs(signature: GraphSignature, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Inputs of a padded graph: one history is empty, one full, padding is zero, candidates are spread over the requests."""
    arrays: dict[str, NDArray[Any]] = {}
    for spec in signature.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        if spec.name == "request_index":
            arrays[spec.name] = rng.integers(0, sizes["R"], shape)
        elif spec.name.endswith("_length"):
            longest = sizes[f"T_{spec.name.removesuffix('_length')}"]
            arrays[spec.name] = rng.integers(0, longest + 1, shape)
            arrays[spec.name][0], arrays[spec.name][-1] = 0, longest
        else:
            arrays[spec.name] = rng.standard_normal(shape).astype(np.float32)
    for name in [name for name in arrays if name.endswith("_length")]:
        event = name.removesuffix("_length")
        arrays[f"{event}_age"] = np.abs(arrays[f"{event}_age"]) * np.float32(1e4)
        past = np.arange(sizes[f"T_{event}"])[None, :] >= arrays[name][:, None]
        for part in ("rows", "dense", "age"):
            if f"{event}_{part}" in arrays:
                arrays[f"{event}_{part}"][past] = 0
    return arrays


def model_rows(case: Case, tools: Tools) -> Iterable[Row]:
    """The rows of one preset."""
    errors: dict[str, float] = {}
    typed: dict[str, ModelProto] = {}
    for form in forms(case):
        note(f"{case.preset}: {form.name} is exported; now on CPU engines")
        if form.name != PADDED:
            typed[form.name] = typed_graph(form.model, case.precision)
        _compare(form, errors)
    yield _agreed(case, errors)
    yield _typed(case, typed)
    yield from _parsed(case, typed, tools)


def on_onnx_runtime(path: Path, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3  # of constants that it will not fold
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def on_openvino(path: Path, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Outputs by name, function bodies inlined."""
    inlined = path.with_stem("inlined")
    inlined.write_bytes(inliner.inline_local_functions(onnx.load(path, load_external_data=False)).SerializeToString())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    results = (compiled := openvino.Core().compile_model(inlined, "CPU", settings))(dict(inputs))
    return {name: np.array(results[port]) for port in compiled.outputs for name in port.get_names()}


def _compare(form: Form, errors: dict[str, float]) -> None:
    """Check a graph and run it; `errors` by engine are raised to its worst output's. Raises what the ONNX checker raises."""
    with _saved(form.model) as path:
        onnx.checker.check_model(path, full_check=True)
        for engine, run in (("ONNX Runtime", on_onnx_runtime), ("OpenVINO", on_openvino)):
            found = run(path, form.inputs)
            worst = [_error(found[name], wanted) for name, wanted in form.wanted.items()]
            errors[engine] = float(np.max([errors.get(engine, 0.0), *worst]))  # unlike `max`, of NaN alone where there is one


def _agreed(case: Case, errors: dict[str, float]) -> Row:
    """Whether every engine computed what the twin did."""
    target = f"ONNX checker and shape inference pass; padded, jagged and scoring graphs within {BOUND:g} of the twin (f32)"
    return Row(f"{case.preset}: forms", target, all(error <= BOUND for error in errors.values()), "relative error", errors)


@contextmanager
def _saved(model: ModelProto) -> Iterator[Path]:
    """A file of `model`, with its weights beside it: they may be more than one message holds. Takes them out of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="model.weights")
        yield path


def _typed(case: Case, typed: Mapping[str, ModelProto]) -> Row:
    """Types of all tensors, f32 at the end, and a kernel for every node."""
    problems, nodes, plugins = [], 0, 0
    for name, model in typed.items():
        kinds = element_types(model)
        problems += [f"{name}: no type of {tensor}" for tensor, kind in kinds.items() if not kind]
        problems += [f"{name}: {o.name} is not f32" for o in model.graph.output if kinds[o.name] != onnx.TensorProto.FLOAT]
        shapes = _shapes(model)
        for node in nodes_of(model.graph):
            heads, width = shapes[node.input[0]][-2:]
            dtype = {1: "f32", 10: "f16", 16: "bf16"}[kinds[node.input[0]]]
            lacking = problem(parse(node.op_type, attributes_of(node)), dtype, heads, width)
            problems += [lacking] if lacking else []
            plugins += 1
        nodes += len(model.graph.node)
    target = "every tensor has a type, outputs are f32, and a kernel is shipped for every node of ours"
    figures = {"precision": case.precision, "nodes": nodes, "of ours": plugins}
    return Row(f"{case.preset}: typed graphs", target, not problems, "; ".join(problems), figures)


def _parsed(case: Case, typed: Mapping[str, ModelProto], tools: Tools) -> Iterable[Row]:
    """What the parser and the builder say of both graphs."""
    parser_target = "no error, every node of ours a plugin restored as it was, outputs shaped as in the signature"
    plan_target = "a plan is built on the CPU"
    if tools.program is None:
        yield Row(f"{case.preset}: parser", parser_target, None, tools.missing)
        yield Row(f"{case.preset}: plan", plan_target, None, tools.missing)
        return
    problems: list[str] = []
    layers, plugins, size, seconds, failed = 0, 0, 0, 0.0, []
    for name, model in typed.items():
        expected, ours = _outputs(model), sum(1 for _ in nodes_of(model.graph))
        with _saved(model) as path:
            found = tools.ask(path, _profiles(model, case))
        problems += [f"{name}: {text}" for text in found.problems()]
        if len(found.plugins) != ours or found.outputs != expected:
            problems.append(f"{name}: expected {ours} plugins and {expected}, found {len(found.plugins)} and {found.outputs}")
        layers, plugins = layers + found.layers, plugins + len(found.plugins)
        size, seconds = size + (found.plan_bytes or 0), seconds + (found.plan_seconds or 0.0)
        failed += [] if found.plan_bytes else [f"{name}: {'; '.join(found.messages) or 'no plan'}"]
    counts = {"layers": layers, "plugins": plugins}
    yield Row(f"{case.preset}: parser", parser_target, not problems, "; ".join(problems), counts)
    plans = {"megabytes": round(size / 1e6, 1), "seconds": round(seconds, 1)}
    yield Row(f"{case.preset}: plan", plan_target, not failed, "; ".join(failed), plans)


def _profiles(model: ModelProto, case: Case) -> list[Profile]:
    """From one user with one row, or one candidate, up to eight full histories, or 512 candidates."""
    users = (1, 4, 8)
    known = {"U": users, "R": users, "U + 1": tuple(count + 1 for count in users), "C": (1, 256, 512)}
    known |= {f"N_{event}": tuple(count * cap for count in users) for event, cap in ((CLICK, case.cap), (CART, case.cap // 2))}
    found = []
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shapes = [tuple(known[d.dim_param][i] if d.dim_param else d.dim_value for d in dims) for i in range(3)]
        found.append(Profile(value.name, *shapes))
    return found


def _outputs(model: ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        o.name: ("f32", tuple(-1 if d.dim_param else d.dim_value for d in o.type.tensor_type.shape.dim))
        for o in model.graph.output
    }


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _twin(module: EncodeGraph | ScoreGraph, inputs: Arrays) -> dict[str, NDArray[Any]]:
    with served_form():
        outputs = module(*(torch.from_numpy(inputs[spec.name]) for spec in module.signature.inputs))
    return {spec.name: output.numpy() for spec, output in zip(module.signature.outputs, outputs, strict=True)}


def page(rows: list[Row]) -> str:
    """The verification page."""
    return "\n".join(
        [
            "# What is verified of the TensorRT path without a GPU",
            "",
            "Written by `make trt-check PAGE=1`, where TensorRT's headers and the libraries of TensorRT for RTX are at hand "
            "([how](tensorrt.md)). Weights are random, histories ragged.",
            "",
            check.table(rows),
            "",
            "## What only a GPU adds",
            "",
            *(f"* {text}" for text in GPU_ONLY),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.tensorrt", description=__doc__)
    names = [case.preset for case in CASES]
    parser.add_argument("--presets", nargs="*", choices=names, default=names, help="models to check (default: all)")
    parser.add_argument(
        "--tests", type=Path, default=Path("tests/kernels/tensorrt"), help="tests to run (default: %(default)s)"
    )
    parser.add_argument("--skip-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--output", type=Path, default=Path("build/tensorrt/check"), help="build folder (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE}")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    torch.set_num_threads(1)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        note(f"{row.what}: {row.result} {row.figures or ''} {row.note}")

    note("plugin and check program are built")
    tools = check.gather(chosen.output)
    for row in check.kernel_rows(tools, None if chosen.skip_tests else chosen.tests, chosen.output):
        add(row)
    for case in CASES:
        if case.preset in chosen.presets:
            for row in model_rows(case, tools):
                add(row)
    if chosen.page:
        PAGE.write_text(page(rows), encoding="utf-8")
    gpu = [Row("on a GPU", "", None, text) for text in GPU_ONLY]
    sys.stdout.write(f"{check.table(rows)}\n{check.line([*rows, *gpu], time.monotonic() - started)}\n")
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
