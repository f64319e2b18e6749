"""The options of the stack leave the exporter as they are trained: many of them in one graph, since tracing takes long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch

from model.architectures.registry import parse_architecture
from model.config import parse_yaml
from model.export.graphs import export_graph
from model.export.writer import example_inputs
from model.layers.served_form import served_form
from model.schema import Schema
from tests.serving.random_artifact import SCHEMA, random_inputs

TOWER = {"width": 32, "heads": 2, "n_seeds": 8, "n_tokens": 2, "kronecker_rank": 2, "window": 6, "layers": 2}
TOGETHER = {
    "preset": "tiny",
    "layers": 2,
    "comp_skip": False,
    "pffn": "ffn",
    "attention_norm": "post",
    "time_encoding": "adjacent",
    "event_tokens": "masknet",
    "default_tower": TOWER | {"attention": "block", "pooling": "pma", "n_recent": 3},
    "towers": {"click": TOWER | {"attention": "dense"}},
    "user_interaction": {"expert_input": "full", "attentive": True},
}
LINEAR = {"preset": "tiny", "layers": 1, "pffn": "generated_linear", "default_tower": {"layers": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("model", [TOGETHER, LINEAR], ids=["together", "generated_linear"])
def test_an_engine_computes_what_the_twin_computed(model: dict[str, object], tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    twin = parse_architecture(model).graphs(parse_yaml(Schema, SCHEMA))[0].eval()
    path = tmp_path / "graph.onnx"
    path.write_bytes(export_graph(twin, twin.signature, example_inputs(twin.signature)).SerializeToString())
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for sizes in ({"U": 3, "T_click": 64, "T_impression": 32}, {"U": 2, "T_click": 8, "T_impression": 17}):
        inputs = random_inputs(twin.signature, sizes, rng)
        with torch.no_grad(), served_form():
            wanted = twin(*(torch.from_numpy(inputs[spec.name]) for spec in twin.signature.inputs))
        found = compiled(inputs)
        for number, value in enumerate(wanted):
            np.testing.assert_allclose(np.array(found[number]), value.numpy(), rtol=2e-4, atol=2e-4)
