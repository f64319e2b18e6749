"""The models' part of `make trt-check`, as far as it is more than running what has tests of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from kernels.tensorrt.check import Row, Tools
from kernels.tensorrt.examples import model_of
from kernels.tensorrt.nodes import GDPA
from kernels.tensorrt.parser import Findings, PluginLayer
from loadtest.checks import tensorrt
from loadtest.checks.tensorrt import CASES, Form

SMALL = CASES[1]
NODE = GDPA(n_kv=64, indexed=1)


@pytest.fixture
def graph() -> onnx.ModelProto:
    return model_of([NODE], "f32", 2, 64)


def test_a_typed_graph_needs_a_kernel_for_every_node_of_ours(graph: onnx.ModelProto) -> None:
    assert tensorrt._typed(SMALL, {"graph": graph}) == Row(
        "small: typed graphs",
        "every tensor has a type, outputs are f32, and a kernel is shipped for every node of ours",
        True,
        "",
        {"precision": "bf16", "nodes": 1, "of ours": 1},
    )
    lacking = tensorrt._typed(SMALL, {"graph": model_of([replace(NODE, n_kv=63)], "bf16", 2, 64)})
    assert lacking.ok is False
    assert "graph: out_0 is not f32" in lacking.note
    assert "GDPA: no kernel gdpa_bf16_h2x64_kv63 is shipped" in lacking.note


def test_an_engine_that_computes_nan_has_not_agreed() -> None:
    """Nor do later outputs make up for it."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Log", ["x"], ["y"]), onnx.helper.make_node("Identity", ["x"], ["z"])],
        "graph",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value(name, onnx.TensorProto.FLOAT, [1]) for name in "yz"],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    minus_one = np.array([-1.0], np.float32)
    errors: dict[str, float] = {}
    for wanted in ({"y": minus_one, "z": minus_one}, {"z": minus_one}):
        tensorrt._compare(Form("form", model, {"x": minus_one}, wanted), errors)
    assert errors.keys() == {"ONNX Runtime", "OpenVINO"}
    assert np.isnan(list(errors.values())).all()
    assert tensorrt._agreed(SMALL, errors).ok is False
    assert tensorrt._agreed(SMALL, {"ONNX Runtime": tensorrt.BOUND}).ok


def test_what_needs_nvidias_tools_is_not_verified_rather_than_left_out(graph: onnx.ModelProto) -> None:
    rows = list(tensorrt._parsed(SMALL, {"graph": graph}, Tools(None, None, None, None, "no headers, no parser")))
    assert [(row.what, row.ok, row.note) for row in rows] == [
        ("small: parser", None, "no headers, no parser"),
        ("small: plan", None, "no headers, no parser"),
    ]


def test_the_page_says_what_only_a_gpu_adds() -> None:
    text = tensorrt.page([Row("tiny: plan", "a plan is built", True, "", {"megabytes": 1.5})])
    assert "| tiny: plan | verified | megabytes 1.5 | a plan is built |" in text
    assert "CUDA graphs" in text


def test_a_plugin_that_is_not_restored_is_a_problem() -> None:
    layer = PluginLayer("PFFN_1", "PFFN", "f32", (-1, 2, 16), restored=False)
    found = Findings(True, (), (), 1, (layer,), {}, None, None)
    assert found.problems() == ["PFFN_1: its plugin is not restored as it was"]
    assert replace(found, parsed=False, plugins=()).problems() == ["not parsed"]
