"""Everything about a TensorRT build that needs no GPU: typed graphs, checked, beside the portable ones' figures.

The checks are those that a CPU can make: ONNX's own, types and shapes through the whole graph, and the typed graphs run by
OpenVINO on the golden batch, function bodies in place of the plugin, in the precision that will be built.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from numpy.typing import NDArray
from onnx import inliner

from model.artifact import Artifact, ArtifactError
from model.jagged_inputs import jagged_inputs
from model.signature import ENCODE_USER, JAGGED_ENCODE
from serving.engines.base import Tensors
from serving.engines.cache import GRAPHS, ParityFigures
from serving.engines.parity import check_parity
from serving.engines.tensorrt.session import ModelForm
from serving.engines.tensorrt.typed_graph import element_types, operators, typed_graph, write_typed


@dataclass(frozen=True)
class PreparedGraph:
    """One typed graph: its file, what it is made of, and a digest of everything but its weights."""

    file: Path
    form: str
    nodes: int
    plugins: dict[str, int]
    weight_bytes: int
    structure: str


@dataclass(frozen=True)
class Prepared:
    """Typed graphs by name, and how far they are from the twin on a CPU."""

    graphs: dict[str, PreparedGraph]
    parity: ParityFigures
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For reports and manifests."""
        return {
            "graphs": {
                name: {
                    "form": g.form,
                    "nodes": g.nodes,
                    "plugins": g.plugins,
                    "weight_bytes": g.weight_bytes,
                    "structure": g.structure,
                }
                for name, g in self.graphs.items()
            },
            "parity_on_cpu": self.parity.model_dump() | {"passed": self.parity.passed},
            "seconds": round(self.seconds, 2),
        }


def prepare(artifact: Artifact, form: ModelForm, precision: str, directory: Path) -> Prepared:
    """Write ``<graph>.onnx`` and ``<graph>.weights`` of both graphs into `directory` and check them.

    Raises `ArtifactError` when a graph cannot be typed or does not compute what the twin computed.
    """
    started = time.perf_counter()
    graphs = {graph: _prepare(artifact, form, graph, precision, directory) for graph in GRAPHS}
    parity = check_parity(_CpuRun({name: g.file for name, g in graphs.items()}, form), precision, artifact)
    if not parity.passed:
        raise ArtifactError(
            f"typed graphs in {precision}: expected errors of at most {parity.gate:g} (probability) and {parity.state_gate:g} "
            f"(state) on a CPU, found {parity.max_probability_error:.3g} and {parity.max_state_error:.3g}"
        )
    return Prepared(graphs, parity, time.perf_counter() - started)


def _prepare(artifact: Artifact, form: ModelForm, graph: str, precision: str, directory: Path) -> PreparedGraph:
    is_jagged = graph == ENCODE_USER and form.is_jagged
    source, file = artifact.graph(JAGGED_ENCODE if is_jagged else graph), directory / f"{graph}.onnx"
    try:
        model = typed_graph(onnx.load(source), precision)
        write_typed(model, file)
        untyped = [name for name, kind in element_types(model).items() if not kind]
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"{source.name}: cannot be made a typed graph: {error}") from error
    if untyped:
        raise ArtifactError(f"{source.name}: expected a type of every tensor, found none of {untyped[0]}")
    found = operators(model)
    plugins = {name: count for name, count in sorted(found.items()) if "." in name}
    weights = file.with_suffix(".weights").stat().st_size
    return PreparedGraph(
        file, "jagged" if is_jagged else "padded", sum(found.values()), plugins, weights, structure_digest(model)
    )


def structure_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of a graph without the values of its weights: graphs of equal structure can be refitted into one another."""
    digest = hashlib.sha256()
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(repr((tensor.name, tuple(tensor.dims), tensor.data_type)).encode())
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL):
            digest.update(onnx.numpy_helper.to_array(tensor).tobytes())  # shapes and axes are structure
    for value in (*model.graph.input, *model.graph.output):
        digest.update(value.SerializeToString(deterministic=True))
    return digest.hexdigest()


class _CpuRun:
    """Typed graphs on OpenVINO, as a session of exact sizes."""

    fault = ""

    def __init__(self, files: dict[str, Path], form: ModelForm) -> None:
        self._form = form
        self._compiled = {graph: self._compile(file) for graph, file in files.items()}

    def prepare(self, graph: str, inputs: Tensors) -> None:
        """Graphs are compiled already."""

    def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if graph == ENCODE_USER and self._form.is_jagged:
            inputs = jagged_inputs(inputs, self._form.events)
        compiled = self._compiled[graph]
        results = compiled({spec.name: inputs[spec.name] for spec in self._form.built[graph].inputs})
        return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}

    @staticmethod
    def _compile(file: Path) -> Any:
        inlined = file.with_name(f"{file.stem}.inlined.onnx")
        model = inliner.inline_local_functions(onnx.load(file, load_external_data=False))
        inlined.write_bytes(model.SerializeToString())
        try:
            return openvino.Core().compile_model(inlined, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        finally:
            inlined.unlink()
