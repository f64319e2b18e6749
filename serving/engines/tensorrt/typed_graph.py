"""Portable graph → the graph that TensorRT builds: constants folded, and a type on every product.

TensorRT builds strongly typed networks: a tensor has the type that the graph gives it. In 16 bits run the matrix products and
our own operators, which accumulate in f32; everything else stays f32, above all what the statistics of norms, softmax,
rotary angles and the residual streams are made of, and the last product before the logits. Casts between the two are
pointwise, so TensorRT fuses them with their neighbours. Weights of 16-bit products are stored in 16 bits, and what depends on
weights alone is computed here: refittable weights are not folded by the builder.

Pure and deterministic: the same graph with other weights gives the same nodes and names, which is what refitting rests on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kernels.tensorrt.bodies import TYPES
from kernels.tensorrt.nodes import DOMAIN
from model.signature import LOGITS

PRODUCTS = frozenset({"MatMul", "Gemm"})
MOVES = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity"})
"""Operators that move values without looking at them: a cast may pass them on its way up to a weight."""

LEFT_TO_ENGINE = frozenset({"Transpose"})
"""Folded into the products that read them by every engine; folding them here would store weights twice."""


def typed_graph(model: ModelProto, precision: str) -> ModelProto:
    """A typed copy of `model`, whose weights must be in it (`onnx.load` brings them). Raises `ValueError`."""
    if precision not in TYPES:
        raise ValueError(f"precision: expected one of {', '.join(TYPES)}, found {precision!r}")
    made = ModelProto()
    made.CopyFrom(model)
    _name_nodes(made)
    _plain_casts(made)
    _plain_splits(made)
    _fold(made)
    if precision != "f32":
        _Typing(made, TYPES[precision]).run()
    _drop_dead(made)
    del made.graph.value_info[:]
    return made


def write_typed(model: ModelProto, path: Path) -> None:
    """Write a graph with its weights in a file beside it, ``<name>.weights``, and check it."""
    weights = path.with_suffix(".weights")
    weights.unlink(missing_ok=True)  # `onnx.save` appends
    saved = ModelProto()
    saved.CopyFrom(model)  # `onnx.save` takes the weights out of what it is given
    onnx.save(saved, path, save_as_external_data=True, location=weights.name, size_threshold=1024)
    onnx.checker.check_model(path)


class _Typing:
    """Casts around products and our operators."""

    def __init__(self, model: ModelProto, to: int) -> None:
        self._graph, self._to = model.graph, to
        self._suffix = f"_{'bf16' if to == TensorProto.BFLOAT16 else 'f16'}"
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producer = {name: node for node in model.graph.node for name in node.output}
        self._known: dict[str, str] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        kept = last_products(self._graph, LOGITS)
        for node in self._graph.node:
            if node.output[0] in kept or not (node.domain == DOMAIN or (node.domain == "" and node.op_type in PRODUCTS)):
                self._nodes.append(node)
            elif node.op_type == "Gemm" and len(node.input) == 3:
                self._gemm_with_bias(node)
            else:
                self._cast_around(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _gemm_with_bias(self, node: NodeProto) -> None:
        """The bias is added in f32, which is what the product is accumulated in."""
        factors = {a.name: a.f for a in node.attribute if a.name in ("alpha", "beta")}
        if any(value != 1.0 for value in factors.values()):
            raise ValueError(f"{node.name}: expected alpha and beta of 1, found {factors}")
        bias, out = node.input.pop(), node.output[0]
        node.output[0] = f"{out}_without_bias"
        self._cast_around(node)
        self._nodes.append(helper.make_node("Add", [node.output[0].removesuffix(self._suffix), bias], [out], f"{out}_bias"))

    def _cast_around(self, node: NodeProto) -> None:
        floating = 3 if node.domain == DOMAIN else 2  # of our operators, offsets and indices follow
        for at in range(floating):
            node.input[at] = self._narrow(node.input[at])
        out = node.output[0]
        node.output[0] = out + self._suffix
        self._nodes += [node, helper.make_node("Cast", [node.output[0]], [out], f"{out}_wide", to=TensorProto.FLOAT)]
        self._known[out] = node.output[0]  # whoever wants it narrow again takes it as it is

    def _narrow(self, name: str) -> str:
        """The 16-bit form of a tensor; that of a weight is stored, through whatever moves it."""
        if name in self._known:
            return self._known[name]
        narrow, source = name + self._suffix, self._producer.get(name)
        if name in self._weights:
            self._graph.initializer.append(self._stored(self._weights[name], narrow))
        elif source is not None and source.op_type in MOVES and self._is_weight(source.input[0]):
            moved = NodeProto()
            moved.CopyFrom(source)
            moved.name, moved.input[0], moved.output[0] = source.name + self._suffix, self._narrow(source.input[0]), narrow
            self._nodes.append(moved)
        else:
            self._nodes.append(helper.make_node("Cast", [name], [narrow], f"{name}_narrow", to=self._to))
        self._known[name] = narrow
        return narrow

    def _is_weight(self, name: str) -> bool:
        while (source := self._producer.get(name)) is not None and source.op_type in MOVES:
            name = source.input[0]
        return name in self._weights

    def _stored(self, weight: TensorProto, name: str) -> TensorProto:
        array = numpy_helper.to_array(weight)
        return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(self._to)), name)


def last_products(graph: onnx.GraphProto, output: str) -> set[str]:
    """Outputs of the products between which and `output` there is no other product; empty where there is no such output."""
    producer = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    waiting, seen = [value.name for value in graph.output if value.name == output], set[str]()
    while waiting:
        name = waiting.pop()
        node = producer.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.domain == DOMAIN or node.op_type in PRODUCTS:
            found.add(name)
        else:
            waiting.extend(node.input)
    return found


def _name_nodes(model: ModelProto) -> None:
    """Every node by its first output, so that reports and errors can name it."""
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"


def _plain_casts(model: ModelProto) -> None:
    """`CastLike` → `Cast` to the type that it is like."""
    types = element_types(model)
    for node in model.graph.node:
        if node.op_type == "CastLike" and node.domain == "":
            node.op_type, like = "Cast", node.input.pop()
            node.attribute.append(helper.make_attribute("to", types[like]))


def _plain_splits(model: ModelProto) -> None:
    """`SplitToSequence` and the `SequenceAt`s that read it → `Split`: TensorRT has no sequences."""
    graph = model.graph
    constants = _constants(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    replaced: dict[str, NodeProto] = {}
    dropped: set[str] = set()
    for node in graph.node:
        if node.op_type != "SplitToSequence":
            continue
        taking = readers.get(node.output[0], [])
        places = [int(constants[reader.input[1]]) for reader in taking if reader.op_type == "SequenceAt"]
        if len(places) != len(taking):
            raise ValueError(f"{node.name}: expected a sequence that is only indexed, found {[r.op_type for r in taking]}")
        count = max(places) + 1
        names = {place: reader.output[0] for place, reader in zip(places, taking, strict=True)}
        outputs = [names.get(place, f"{node.output[0]}_{place}") for place in range(count)]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        made = helper.make_node("Split", [node.input[0]], outputs, node.name, axis=axis, num_outputs=count)
        replaced[node.output[0]] = made
        dropped |= {reader.output[0] for reader in taking}
    kept = [replaced.get(node.output[0], node) for node in graph.node if node.output[0] not in dropped]
    del graph.node[:]
    graph.node.extend(kept)


def _fold(model: ModelProto) -> None:
    """Compute what depends on constants alone; shared results stay shared."""
    graph = model.graph
    known = _constants(model)
    weights = {tensor.name for tensor in graph.initializer}
    moved: set[str] = set()  # weights behind a transposition that engines fold
    made: dict[str, np.ndarray] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        inputs = [name for name in node.input if name]
        constant = node.domain == "" and node.op_type != "Constant" and all(n in known or n in moved for n in inputs) and inputs
        if node.op_type in LEFT_TO_ENGINE and node.input[0] in weights:
            moved.add(node.output[0])
            known[node.output[0]] = np.transpose(known[node.input[0]], _permutation(node))
            kept.append(node)
        elif constant:
            for name, value in zip(node.output, _evaluate(model, node, known), strict=True):
                known[name] = made[name] = value
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in made.items())


def _permutation(node: NodeProto) -> list[int] | None:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), None)


def _evaluate(model: ModelProto, node: NodeProto, known: dict[str, np.ndarray]) -> list[np.ndarray]:
    inputs = sorted({name for name in node.input if name})
    alone = helper.make_graph(
        [node],
        node.name,
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(known[n].dtype), known[n].shape) for n in inputs],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    evaluator = ReferenceEvaluator(helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version))
    return list(evaluator.run(None, {name: known[name] for name in inputs}))


def _constants(model: ModelProto) -> dict[str, np.ndarray]:
    """Values of initializers and `Constant` nodes."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = _value(node)
    return found


def _value(node: NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(attribute.t))
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        raise ValueError(f"{node.name}: expected a constant of numbers, found {attribute.name}")
    return np.asarray(helper.get_attribute_value(attribute), kinds[attribute.name])


def _drop_dead(model: ModelProto) -> None:
    """Nodes and weights that no output needs."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def operators(model: ModelProto) -> Counter[str]:
    """How many nodes of each operator a graph has, ours as ``kunlun.<operator>``."""
    return Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node)


def element_types(model: ModelProto) -> dict[str, int]:
    """ONNX element type of every tensor, by shape inference through the function bodies."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return dict(_typed_values(inferred.graph))


def _typed_values(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    values: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    yield from ((value.name, value.type.tensor_type.elem_type) for value in values)
    yield from ((tensor.name, tensor.data_type) for tensor in graph.initializer)
