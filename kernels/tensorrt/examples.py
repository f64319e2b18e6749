"""Small ONNX models of the nodes alone, with dynamic rows: what tests run and the check shows to NVIDIA's parser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, helper

from kernels.tensorrt.bodies import OPSET, TYPES, with_functions
from kernels.tensorrt.nodes import DOMAIN, Node, SeedPooling
from kernels.tensorrt.parser import Profile


def model_of(nodes: Sequence[Node], dtype: str, heads: int, width: int) -> ModelProto:
    """Every node on the same inputs, those of the first; outputs `out_0`, `out_1`, …; inputs have dynamic rows."""
    return with_functions(unchecked(nodes, [dict(node.attributes) for node in nodes], dtype, heads, width))


def unchecked(nodes: Sequence[Node], attributes: Sequence[dict[str, Any]], dtype: str, heads: int, width: int) -> ModelProto:
    """The same without function bodies and with any attributes: for what must be refused."""
    made = [
        helper.make_node(node.op_type, list(node.inputs), [f"out_{i}"], name=f"node_{i}", domain=DOMAIN, **values)
        for i, (node, values) in enumerate(zip(nodes, attributes, strict=True))
    ]
    inputs = [
        helper.make_tensor_value_info(name, TYPES[dtype], [f"{name}_rows", heads, width])
        if i < 3
        else helper.make_tensor_value_info(name, TensorProto.INT32, [f"{name}_entries"])
        for i, name in enumerate(nodes[0].inputs)
    ]
    outputs = [
        helper.make_tensor_value_info(
            f"out_{i}",
            TYPES[dtype],
            ["samples", "seeds", heads, width] if isinstance(node, SeedPooling) else ["out_rows", heads, width],
        )
        for i, node in enumerate(nodes)
    ]
    graph = helper.make_graph(made, "nodes", inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets)
    return model


def profiles(model: onnx.ModelProto, samples: int, rows: int, n_kv: int) -> list[Profile]:
    """Sizes for the inputs of `model_of`: up to `samples` samples of `rows` rows each, and as many K/V blocks of `n_kv`."""
    found = []
    for value in model.graph.input:
        name, dims = value.name, value.type.tensor_type.shape.dim
        inner = tuple(d.dim_value for d in dims[1:])
        if not inner:
            entries = (1, samples // 2, samples) if name == "kv_index" else (2, samples // 2 + 1, samples + 1)
            found.append(Profile(name, *((count,) for count in entries)))
        elif name == "seeds":
            found.append(Profile(name, *((count, *inner) for count in (1, 4, 16))))
        else:
            each = n_kv if n_kv and name in ("k", "v") else rows
            found.append(Profile(name, *((count, *inner) for count in (each, each * (samples // 2), each * samples))))
    return found
