"""The two ONNX graphs, with their weights left in one safetensors file.

`torch.export` traces each graph with dynamic users, requests, candidates and history lengths. No
optimizer runs here: engines fold constants better for themselves, and unfolded initializers keep the
names of the twin's parameters. Each is then turned into an external-data reference (file, offset,
length) into ``weights.safetensors`` beside the graphs, so weights exist once and a graph file is small.
"""

from __future__ import annotations

import json
import logging
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.export import Dim

from kernels.backend import preferred
from kernels.tensorrt.bodies import with_functions
from model.architectures.graphs import EncodeGraph
from model.layers.jagged import jagged_form
from model.layers.served_form import served_form
from model.signature import GraphSignature

OPSET = 20
WEIGHTS = "weights.safetensors"
INLINE_BYTES = 128
"""Smaller tensors (shapes, scalars) stay in the graph file: shape inference needs their values."""


def export_graph(module: nn.Module, signature: GraphSignature, example: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Trace `module` with example inputs (dynamic sizes at least 2) and rename its dynamic dimensions."""
    inputs = tuple(example[spec.name] for spec in signature.inputs)
    dynamic = tuple(
        {axis: Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in signature.inputs
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with served_form(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(dynamic,),
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            optimize=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _name_dimensions(proto, signature)
    return proto


def export_jagged(module: EncodeGraph, example: Mapping[str, Tensor]) -> onnx.ModelProto:
    """The same on jagged rows; `example` fits `jagged_signature`, which must not be None.

    Ragged operators are nodes of the domain `kunlun`, with function bodies for engines that have none.
    """
    assert module.jagged_signature is not None
    with jagged_form(), preferred("onnx"):
        return with_functions(export_graph(module, module.jagged_signature, example))


def externalize(proto: onnx.ModelProto, prefix: str, weights: Path) -> int:
    """Point every initializer that equals the weight ``<prefix>.<name>`` at its bytes; returns how many."""
    offsets = _safetensors_layout(weights)
    moved = 0
    for initializer in proto.graph.initializer:
        where = offsets.get(f"{prefix}.{initializer.name}")
        if where is None or where[1] < INLINE_BYTES:
            continue
        start, length = where
        array = onnx.numpy_helper.to_array(initializer)
        with weights.open("rb") as file:
            file.seek(start)
            if file.read(length) != np.ascontiguousarray(array).tobytes():
                continue
        initializer.ClearField("raw_data")
        initializer.ClearField("float_data")
        initializer.data_location = TensorProto.EXTERNAL
        del initializer.external_data[:]
        for key, value in (("location", WEIGHTS), ("offset", start), ("length", length)):
            initializer.external_data.add(key=key, value=str(value))
        moved += 1
    return moved


def _safetensors_layout(path: Path) -> dict[str, tuple[int, int]]:
    """Absolute offset and length of every tensor of a safetensors file."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(header_bytes))
    base = 8 + header_bytes
    return {
        name: (base + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _name_dimensions(proto: onnx.ModelProto, signature: GraphSignature) -> None:
    """Replace generated symbols by those of the signature and drop inner shapes that use the old ones."""
    for values, specs in ((proto.graph.input, signature.inputs), (proto.graph.output, signature.outputs)):
        by_name = {value.name: value for value in values}
        for spec in specs:
            shape = by_name[spec.name].type.tensor_type.shape
            del shape.dim[:]
            for size in spec.shape:
                if isinstance(size, str):
                    shape.dim.add(dim_param=size)
                else:
                    shape.dim.add(dim_value=size)
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
