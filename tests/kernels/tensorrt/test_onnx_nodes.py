"""The node contract: what it refuses, and its function bodies against the plain forms on ONNX Runtime and OpenVINO."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, inliner
from ragged import offsets_of
from torch import Tensor

from kernels.aot.library import ACTIVATIONS
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.reference import gdpa_jagged
from kernels.pffn.reference import pffn_jagged
from kernels.seed_pooling.reference import seed_pooling_jagged
from kernels.tensorrt import examples
from kernels.tensorrt.bodies import with_functions
from kernels.tensorrt.nodes import DOMAIN, GDPA, NODES, PFFN, PLUGIN, Node, SeedPooling, WindowAttention, parse
from kernels.window.reference import window_attention_jagged

HEADS, WIDTH = 2, 8
TYPES = {torch.float32: "f32", torch.float16: "f16"}
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


def model_of(nodes: list[Node], tensors: dict[str, Tensor]) -> onnx.ModelProto:
    return examples.model_of(nodes, TYPES[next(iter(tensors.values())).dtype], HEADS, WIDTH)


def run_onnx_runtime(model: onnx.ModelProto, tensors: dict[str, Tensor]) -> list[NDArray[Any]]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: x.numpy() for name, x in tensors.items()}))


def run_openvino(model: onnx.ModelProto, tensors: dict[str, Tensor]) -> list[NDArray[Any]]:
    plain = inliner.inline_local_functions(model)
    compiled = openvino.compile_model(
        openvino.Core().read_model(plain.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return list(compiled({name: x.numpy() for name, x in tensors.items()}).values())


def rows(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def case(node: Node, lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of `node` on samples of these lengths, and what its plain form makes of them in f32."""
    offsets, count = offsets_of(lengths), sum(lengths)
    q, k, v = (rows(count, seed + i, dtype) for i in range(3))
    if isinstance(node, WindowAttention):
        tensors = {"q": q, "k": k, "v": v, "offsets": offsets}
        return tensors, window_attention_jagged(q.float(), k.float(), v.float(), offsets, node.window)[0]
    if isinstance(node, SeedPooling):
        tensors = {"seeds": rows(3, seed + 9, dtype), "k": k, "v": v, "offsets": offsets}
        return tensors, seed_pooling_jagged(tensors["seeds"].float(), k.float(), v.float(), offsets)[0]
    generator = torch.Generator().manual_seed(seed)
    blocks = 3 if node.indexed else len(lengths)
    index = torch.randint(0, blocks, (len(lengths),), generator=generator, dtype=torch.int32) if node.indexed else None
    key_lengths = torch.randint(0, 6, (blocks,), generator=generator).tolist()
    key_rows = blocks * node.n_kv if node.n_kv else sum(key_lengths)
    tensors = {"q": q, "k": rows(key_rows, seed + 3, dtype), "v": rows(key_rows, seed + 4, dtype), "q_offsets": offsets}
    layout = Jagged(offsets, node.n_kv or None, index, None if node.n_kv else offsets_of(key_lengths))
    if layout.k_offsets is not None:
        tensors["k_offsets"] = layout.k_offsets
    if index is not None:
        tensors["kv_index"] = index
    params = GDPAParams((node.activation,), node.scale_in, node.scale_out)
    operands = [tensors[name].float() for name in ("q", "k", "v")]
    if isinstance(node, PFFN):
        return tensors, pffn_jagged(*operands, params, layout, node.eps)
    return tensors, gdpa_jagged(*operands, params, layout)


STRUCTURES: list[Node] = [
    kind(activation=activation, n_kv=n_kv, scale_in=0.4, scale_out=0.7, indexed=indexed)
    for kind, activation in ((GDPA, "silu"), (PFFN, "fast_gelu"))
    for n_kv in (0, 5)
    for indexed in (0, 1)
]
ATTENTION: list[Node] = [WindowAttention(2, WIDTH**-0.5), WindowAttention(50, WIDTH**-0.5), SeedPooling(WIDTH**-0.5)]


@settings(max_examples=6, deadline=None)
@given(LENGTHS, st.integers(0, 2**20))
@pytest.mark.parametrize("node", [*STRUCTURES, *ATTENTION], ids=str)
def test_bodies_compute_what_the_plain_forms_do_in_onnx_runtime(node: Node, lengths: list[int], seed: int) -> None:
    tensors, want = case(node, lengths, seed)
    (got,) = run_onnx_runtime(model_of([node], tensors), tensors)
    np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


@pytest.mark.parametrize("node", [*STRUCTURES[::3], *ATTENTION], ids=str)
def test_inlined_bodies_compute_the_same_in_openvino(node: Node) -> None:
    for lengths in ([3, 0, 37, 1], [0], [4]):
        tensors, want = case(node, lengths)
        (got,) = run_openvino(model_of([node], tensors), tensors)
        np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


def test_nodes_of_one_operator_may_differ_in_activation_and_layout() -> None:
    nodes: list[Node] = [GDPA(activation=name, n_kv=4, scale_in=0.5) for name in ACTIVATIONS]
    tensors, _ = case(nodes[0], [3, 0, 2])
    model = model_of([*nodes, replace(nodes[0], scale_out=3.0)], tensors)
    assert len(model.functions) == len(ACTIVATIONS)
    for engine in (run_onnx_runtime, run_openvino):
        got = engine(model, tensors)
        for node, result in zip(nodes, got, strict=False):
            np.testing.assert_allclose(result, case(node, [3, 0, 2])[1].numpy(), atol=2e-5)
        np.testing.assert_allclose(got[-1], 3 * got[0], atol=2e-5)


@pytest.mark.parametrize("node", [STRUCTURES[5], *ATTENTION[1:]], ids=str)
def test_half_precision_rows_are_worked_on_in_f32_and_rounded_once(node: Node) -> None:
    tensors, want = case(node, [3, 0, 5], dtype=torch.float16)
    (got,) = run_onnx_runtime(model_of([node], tensors), tensors)
    assert got.dtype == np.float16
    np.testing.assert_array_max_ulp(got, want.half().numpy(), 2)


def test_rows_beyond_the_last_offset_disturb_nobody() -> None:
    node = PFFN(n_kv=5)
    tensors, want = case(node, [2, 3])
    tensors["q"] = torch.cat([tensors["q"], torch.full((4, HEADS, WIDTH), float("nan"))])
    for engine in (run_onnx_runtime, run_openvino):
        np.testing.assert_allclose(engine(model_of([node], tensors), tensors)[0][:5], want.numpy(), atol=2e-5)


def test_attributes_survive_a_round_trip_through_a_node() -> None:
    for node in (*STRUCTURES, *ATTENTION):
        assert parse(node.op_type, node.attributes) == node


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [
        ("GDPA", {"activation": "tanh"}, "activation: expected one of raw, .*, found 'tanh'"),
        ("GDPA", {"n_kv": -1}, "n_kv: expected at least 0, found -1"),
        ("PFFN", {"eps": 0.0}, "eps: expected a positive number, found 0.0"),
        ("PFFN", {"indexed": 2}, "indexed: expected 0 or 1, found 2"),
        ("WindowAttention", {"window": -3}, "window: expected at least 0, found -3"),
        ("SeedPooling", {"scale": float("inf")}, "scale: expected a positive number, found inf"),
        ("SeedPooling", {"plugin_version": "2"}, "plugin_version: expected '1', found '2'"),
        ("SeedPooling", {"heads": 2}, "unexpected keyword argument 'heads'"),
    ],
)
def test_attributes_that_do_not_fit_are_named(operator: str, changes: dict[str, Any], message: str) -> None:
    known = {"WindowAttention": {"window": 1, "scale": 1.0}, "SeedPooling": {"scale": 1.0}}.get(operator, {})
    with pytest.raises(ValueError, match=message):
        parse(operator, known | PLUGIN | changes)


def test_a_node_with_missing_inputs_is_refused() -> None:
    node = GDPA(n_kv=0)
    proto = helper.make_node("GDPA", ["q", "k", "v", "q_offsets"], ["out"], name="layer", domain=DOMAIN, **node.attributes)
    with pytest.raises(ValueError, match=r"GDPA 'layer': expected inputs q, .*k_offsets, found q, k, v, q_offsets"):
        with_functions(helper.make_model(helper.make_graph([proto], "g", [], [])))


def test_the_contract_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, kernels.tensorrt.nodes; print({'torch', 'onnx', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
    assert set(NODES) == {"GDPA", "PFFN", "WindowAttention", "SeedPooling"}
