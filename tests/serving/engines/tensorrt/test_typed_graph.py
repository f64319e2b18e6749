"""What TensorRT is given: 16-bit products, f32 for everything that must have it, and the numbers of the portable graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import ModelProto, TensorProto, helper, inliner, numpy_helper

from kernels.tensorrt.nodes import DOMAIN
from model.artifact import Artifact
from model.jagged_inputs import jagged_inputs
from model.signature import ENCODE_USER, JAGGED_ENCODE, LOGITS, SCORE_CANDIDATES
from serving.engines.parity import GATES
from serving.engines.tensorrt.typed_graph import element_types, last_products, operators, typed_graph, write_typed

FILES = (JAGGED_ENCODE, ENCODE_USER, SCORE_CANDIDATES)
STATISTICS = {"LayerNormalization", "ReduceMean", "Softmax", "Sigmoid", "Cos", "Sin", "Sqrt"}


@pytest.fixture(scope="module")
def typed(artifact: Artifact) -> dict[tuple[str, str], ModelProto]:
    graphs = {name: onnx.load(artifact.graph(name)) for name in FILES}
    return {(n, p): typed_graph(graph, p) for n, graph in graphs.items() for p in ("f32", "f16", "bf16")}


@pytest.mark.parametrize("name", FILES)
def test_products_run_in_16_bits_and_statistics_in_f32(name: str, typed: dict[tuple[str, str], ModelProto]) -> None:
    graph = typed[name, "bf16"]
    types, kept = element_types(graph), last_products(graph.graph, LOGITS)
    products = [n for n in graph.graph.node if n.op_type in ("MatMul", "Gemm") or n.domain == DOMAIN]
    assert len(products) > 10
    for node in products:
        expected = TensorProto.FLOAT if node.output[0] in kept else TensorProto.BFLOAT16
        assert {types[name] for name in node.input[:2]} == {types[node.output[0]]} == {expected}, node.name
    for node in graph.graph.node:
        if node.op_type in STATISTICS:
            assert types[node.input[0]] == TensorProto.FLOAT, node.name
    assert all(types[output.name] == TensorProto.FLOAT for output in graph.graph.output)


def test_the_product_of_the_logits_is_f32(typed: dict[tuple[str, str], ModelProto]) -> None:
    assert len(last_products(typed[SCORE_CANDIDATES, "bf16"].graph, LOGITS)) == 1


def test_weights_of_16_bit_products_are_stored_in_16_bits(typed: dict[tuple[str, str], ModelProto]) -> None:
    """And once: the f32 graph of another build has the same number of values."""
    sizes = {}
    for precision in ("f32", "bf16"):
        weights = typed[JAGGED_ENCODE, precision].graph.initializer
        sizes[precision] = {t.name: numpy_helper.to_array(t).size for t in weights if t.data_type != TensorProto.INT64}
    narrow = {name: size for name, size in sizes["bf16"].items() if name.endswith("_bf16")}
    assert sum(narrow.values()) > 0.9 * sum(sizes["bf16"].values())
    assert sum(sizes["bf16"].values()) == sum(sizes["f32"].values())


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_tensorrt_lacks_is_left(name: str, typed: dict[tuple[str, str], ModelProto]) -> None:
    absent = {"SplitToSequence", "SequenceAt", "CastLike"}
    assert absent & set(operators(typed[name, "f32"])) == set()


def test_other_weights_give_the_same_nodes_and_names(artifact: Artifact, typed: dict[tuple[str, str], ModelProto]) -> None:
    """What refitting rests on."""
    other = onnx.load(artifact.graph(SCORE_CANDIDATES))
    for tensor in other.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array * 1.5, tensor.name))
    made, before = typed_graph(other, "bf16").graph, typed[SCORE_CANDIDATES, "bf16"].graph
    assert [n.SerializeToString() for n in made.node] == [n.SerializeToString() for n in before.node]
    assert [(t.name, t.dims) for t in made.initializer] == [(t.name, t.dims) for t in before.initializer]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("precision", "engine"), [("f32", "onnxruntime"), ("f16", "onnxruntime"), ("f32", "openvino"), ("bf16", "openvino")]
)
def test_engines_compute_what_the_twin_computed(
    name: str, precision: str, engine: str, typed: dict[tuple[str, str], ModelProto], artifact: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "typed.onnx"
    write_typed(typed[name, precision], path)
    graph = SCORE_CANDIDATES if name == SCORE_CANDIDATES else ENCODE_USER
    golden = {key.removeprefix(f"{graph}/"): array for key, array in artifact.golden().items() if key.startswith(graph)}
    given = jagged_inputs(golden, [e.name for e in artifact.schema.events]) if name == JAGGED_ENCODE else golden
    outputs = run(engine, path, {tensor.name: given[tensor.name] for tensor in typed[name, precision].graph.input})
    gate, state_gate = GATES[precision]
    for output, array in outputs.items():
        scale = float(np.abs(golden[output]).max()) if graph == ENCODE_USER else 1.0
        bound = state_gate if graph == ENCODE_USER or output == LOGITS else gate
        assert float(np.abs(array - golden[output]).max()) <= bound * scale, output


def run(engine: str, path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if engine == "onnxruntime":
        session = onnxruntime.InferenceSession(path)
        return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))
    inlined = path.with_name("inlined.onnx")
    onnx.save(inliner.inline_local_functions(onnx.load(path)), inlined)
    compiled = openvino.Core().compile_model(inlined, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(inputs)
    return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}


def test_what_has_no_type_is_refused() -> None:
    empty = helper.make_model(helper.make_graph([], "empty", [], []))
    with pytest.raises(ValueError, match="precision: expected one of f32, f16, bf16, found 'int8'"):
        typed_graph(empty, "int8")
