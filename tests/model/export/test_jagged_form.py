"""The jagged form computes what the padded one does: in torch, and exported, on engines that know nothing of our operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import inliner

from model.architectures.graphs import EncodeGraph
from model.architectures.registry import parse_architecture
from model.artifact import Artifact
from model.config import parse_yaml
from model.jagged_inputs import jagged_inputs
from model.layers.jagged import jagged_form
from model.layers.served_form import served_form
from model.schema import Schema
from model.signature import ENCODE_USER, JAGGED_ENCODE, jagged_encode_signature
from tests.serving.random_artifact import SCHEMA, random_inputs

BOUND = {"rtol": 1e-5, "atol": 1e-5}
TOWER = {"width": 32, "heads": 2, "n_seeds": 8, "n_tokens": 2, "kronecker_rank": 2, "window": 6, "layers": 3}
OPTIONS = {
    "plain": {},
    "block": {"default_tower": TOWER | {"attention": "block", "pooling": "pma", "n_recent": 3}, "attention_norm": "post"},
    "gdpa_pooling": {"default_tower": TOWER | {"attention": "dense", "pooling": "gdpa"}, "pffn": "ffn", "comp_skip": False},
    "places": {"place_embedding": True, "event_tokens": "masknet", "time_encoding": "adjacent"},
    "target_pooling": {"target_pooling": {"seeds": 2, "width": 32}, "time_encoding": "none", "share_towers": True},
}
SIZES = ({"U": 4, "T_click": 64, "T_impression": 32}, {"U": 1, "T_click": 9, "T_impression": 17})


def encoder(options: dict[str, object]) -> EncodeGraph:
    torch.manual_seed(0)
    return parse_architecture({"preset": "tiny", **options}).graphs(parse_yaml(Schema, SCHEMA))[0].eval()


def ragged(twin: EncodeGraph, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Padded inputs whose first user has no click and whose last has as many as fit."""
    inputs = random_inputs(twin.signature, sizes, rng)
    for user, length in ((0, 0), (-1, sizes["T_click"])):
        inputs["click_length"][user] = length
    past = np.arange(sizes["T_click"])[None, :] >= inputs["click_length"][:, None]
    for part in ("rows", "dense", "age"):
        inputs[f"click_{part}"][past] = 0.0
    return inputs


def run(twin: EncodeGraph, inputs: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    with torch.no_grad(), served_form():
        return [state.numpy() for state in twin(*(torch.from_numpy(inputs[name]) for name in names))]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_jagged_rows_give_the_states_of_padded_ones(options: dict[str, object], rng: np.random.Generator) -> None:
    twin = encoder(options)
    assert twin.jagged_signature is not None
    for sizes in SIZES:
        padded = ragged(twin, sizes, rng)
        wanted = run(twin, padded, [spec.name for spec in twin.signature.inputs])
        with jagged_form():
            found = run(twin, jagged_inputs(padded, twin.caps), [spec.name for spec in twin.jagged_signature.inputs])
        for state, expected in zip(found, wanted, strict=True):
            np.testing.assert_allclose(state, expected, **BOUND)


def test_what_ragged_operators_cannot_say_has_no_jagged_form() -> None:
    schema = parse_yaml(Schema, SCHEMA)
    for options in ({"pffn": "generated_linear"}, {"activation": ["silu", "relu"]}):
        assert jagged_encode_signature(schema, parse_architecture({"preset": "tiny", **options})) is None
    assert jagged_encode_signature(schema, parse_architecture({"architecture": "din"})) is None


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_engines_run_the_exported_jagged_form(engine: str, artifact: Artifact, tmp_path: Path) -> None:
    """Function bodies in place of our operators; rows beyond the last offset hold anything and touch no state."""
    golden, events = artifact.golden(), [event.name for event in artifact.schema.events]
    inputs = jagged_inputs({name.removeprefix(f"{ENCODE_USER}/"): array for name, array in golden.items()}, events)
    for name in list(inputs):
        event, _, part = name.rpartition("_")
        if event in events and part != "offsets":
            inputs[name] = np.concatenate([inputs[name], np.full((5, *inputs[name].shape[1:]), np.nan, np.float32)])
    assert artifact.has_jagged_graph
    outputs = engine_outputs(engine, artifact.graph(JAGGED_ENCODE), inputs, tmp_path)
    for state in artifact.manifest.user_state:
        np.testing.assert_allclose(outputs[state.name], golden[f"{ENCODE_USER}/{state.name}"], **BOUND)


def engine_outputs(engine: str, graph: Path, inputs: dict[str, np.ndarray], tmp_path: Path) -> dict[str, np.ndarray]:
    if engine == "onnxruntime":
        session = onnxruntime.InferenceSession(graph)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))
    path = tmp_path / "inlined.onnx"
    onnx.save(inliner.inline_local_functions(onnx.load(graph)), path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(inputs)
    return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}
