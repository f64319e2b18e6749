"""What holds for every architecture beside Kunlun: state layout, invariances, gradients, FLOPs, and the exported graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.architectures.registry import parse_architecture
from model.export.graphs import export_graph
from model.flops import flop_model
from model.ranker import KunlunRanker
from model.schema import Schema
from model.signature import GraphSignature

TABLE_ROWS = {"item": 40, "genre": 12, "surface": 51, "user.age": 5}
MODELS: dict[str, dict[str, Any]] = {
    "logistic_regression": {"architecture": "logistic_regression"},
    "din": {"architecture": "din", "width": 8, "attention_hidden": 6, "hidden": [12, 10]},
    "din_dice_recent": {"architecture": "din", "width": 8, "hidden": [12], "activation": "dice", "recent_events": 9},
    "dcn_v2": {"architecture": "dcn_v2", "hidden": [12, 10]},
    "dcn_v2_low_rank": {"architecture": "dcn_v2", "rank": 5, "hidden": [12], "structure": "parallel"},
    "wukong": {"architecture": "wukong", "width": 16, "layers": 2, "fm_rank": 4, "hidden": 16, "head_hidden": 8},
    "interformer": {"architecture": "interformer", "width": 16, "hidden": 16, "head_hidden": 8, "recent_events": 10},
    "hstu": {"architecture": "hstu", "width": 16, "layers": 3, "head_hidden": 8},
}
SHALLOW = {"wukong": 1, "interformer": 1, "hstu": 2}
"""Layers of what is exported: tracing takes a second or two for each."""
READ_NO_HISTORY = ("logistic_regression", "wukong")
LENGTHS = {"click": [12, 0, 5], "impression": [24, 3, 0]}
ENCODE_SIZES = {"U": 3, "T_click": 12, "T_impression": 24}
every_model = pytest.mark.parametrize("name", MODELS)


def built(schema: Schema, name: str, layers: int | None = None) -> KunlunRanker:
    torch.manual_seed(0)
    config = MODELS[name] if layers is None else MODELS[name] | {"layers": layers}
    model = KunlunRanker(schema, parse_architecture(config), TABLE_ROWS)
    with torch.no_grad():  # what begins at zero should count
        for parameter in (*model.encode_user.parameters(), *model.score_candidates.parameters()):
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def encode_inputs(signature: GraphSignature, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs; padded events are noise on purpose, ages fall as histories go on."""
    generator = torch.Generator().manual_seed(seed)
    given = {}
    for spec in signature.inputs:
        shape = [ENCODE_SIZES[s] if isinstance(s, str) else s for s in spec.shape]
        if spec.name.endswith("_length"):
            given[spec.name] = torch.tensor(LENGTHS[spec.name.removesuffix("_length")])
        elif spec.name.endswith("_age"):
            given[spec.name] = (torch.rand(shape, generator=generator) * 1e5).sort(dim=1, descending=True).values
        else:
            given[spec.name] = torch.randn(shape, generator=generator)
    return given


def score_inputs(model: KunlunRanker, states: tuple[Tensor, ...], candidates: int = 11, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    requests = len(states[0])
    given = dict(zip((spec.name for spec in model.encode_user.signature.outputs), states, strict=True))
    for spec in model.score_candidates.signature.inputs:
        if spec.name == "request_index":
            given[spec.name] = torch.randint(0, requests, (candidates,), generator=generator)
        elif spec.name not in given:
            rows = requests if spec.shape[0] == "R" else candidates
            given[spec.name] = torch.randn((rows, *spec.shape[1:]), generator=generator)
    return {spec.name: given[spec.name] for spec in model.score_candidates.signature.inputs}


@every_model
@torch.no_grad()
def test_states_have_the_declared_sizes(schema: Schema, name: str) -> None:
    model = built(schema, name)
    states = model.encode_user(*encode_inputs(model.encode_user.signature).values())
    assert [tuple(s.shape[1:]) for s in states] == [spec.row_shape for spec in model.encode_user.signature.outputs]
    logits, probabilities = model.score_candidates(*score_inputs(model, states).values())
    assert logits.shape == probabilities.shape == (11, len(schema.tasks))


@every_model
@torch.no_grad()
def test_a_user_state_does_not_depend_on_batch_mates_or_padding(schema: Schema, name: str) -> None:
    model = built(schema, name)
    given = encode_inputs(model.encode_user.signature)
    together = model.encode_user(*given.values())
    for user in range(3):
        alone = {k: v[user : user + 1] for k, v in given.items()}
        for event in LENGTHS:  # as short as the history allows
            for part in ("rows", "dense", "age"):
                alone[f"{event}_{part}"] = alone[f"{event}_{part}"][:, : max(1, LENGTHS[event][user])]
        for state, whole in zip(model.encode_user(*alone.values()), together, strict=True):
            torch.testing.assert_close(state[0], whole[user], rtol=1e-5, atol=1e-5)


@every_model
@torch.no_grad()
def test_a_score_does_not_depend_on_batch_mates_or_order(schema: Schema, name: str) -> None:
    model = built(schema, name)
    given = score_inputs(model, model.encode_user(*encode_inputs(model.encode_user.signature).values()))
    logits, _ = model.score_candidates(*given.values())
    for c in range(11):
        r = int(given["request_index"][c])
        alone = {k: v[c : c + 1] if k.startswith("item_") else v[r : r + 1] for k, v in given.items()}
        alone["request_index"] = torch.tensor([0])
        torch.testing.assert_close(model.score_candidates(*alone.values())[0][0], logits[c], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in MODELS if "dice" not in n])  # Dice normalises by the batch while it learns
@torch.no_grad()
def test_training_on_shorter_states_gives_the_same_scores(schema: Schema, name: str) -> None:
    model = built(schema, name)
    given = encode_inputs(model.encode_user.signature)
    for event in LENGTHS:
        for part in ("rows", "dense", "age"):
            given[f"{event}_{part}"] = given[f"{event}_{part}"][:2, :12]
        given[f"{event}_length"] = torch.tensor([1, 0])
    given = {k: v[:2] for k, v in given.items()}
    found = []
    for training in (False, True):
        model.train(training)
        states = model.encode_user(*given.values())
        found.append(model.score_candidates.raw_logits(*score_inputs(model, states).values()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@every_model
@torch.no_grad()
def test_who_reads_histories_reads_their_newest_events(schema: Schema, name: str) -> None:
    model = built(schema, name)
    given = encode_inputs(model.encode_user.signature)
    base = model.encode_user(*given.values())
    for event, lengths in LENGTHS.items():
        moved = dict(given)
        moved[f"{event}_rows"] = given[f"{event}_rows"].clone()
        for user, length in enumerate(lengths):
            moved[f"{event}_rows"][user, max(0, length - 1)] += 1.0  # of an empty history: padding
        other = model.encode_user(*moved.values())
        scores = [model.score_candidates.raw_logits(*score_inputs(model, s, candidates=30).values()) for s in (base, other)]
        request = score_inputs(model, base, candidates=30)["request_index"]
        changed = {int(r) for r in request[(scores[0] != scores[1]).any(1)]}
        expected = set() if name in READ_NO_HISTORY else {user for user, length in enumerate(lengths) if length}
        assert changed == expected, event


@every_model
def test_every_parameter_gets_a_gradient(schema: Schema, name: str) -> None:
    model = built(schema, name).train()
    states = model.encode_user(*encode_inputs(model.encode_user.signature).values())
    model.score_candidates.raw_logits(*score_inputs(model, states).values()).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if not n.startswith("tables.") and (p.grad is None or not p.grad.any())]
    assert dead == []


@every_model
@torch.no_grad()
def test_flop_formulas_equal_torchs_count(schema: Schema, name: str) -> None:
    model = built(schema, name)
    flops = flop_model(schema, model.config)
    with FlopCounterMode(display=False) as counter:
        states = model.encode_user(*encode_inputs(model.encode_user.signature).values())
    executed = flops.encode({"click": 12, "impression": 24}, executed=True).total
    assert 3 * executed == pytest.approx(counter.get_total_flops(), rel=0.01)
    given = score_inputs(model, states, candidates=17)
    with FlopCounterMode(display=False) as counter:
        model.score_candidates(*given.values())
    executed = flops.score(3, 17, executed=True).total
    assert executed == pytest.approx(counter.get_total_flops(), rel=0.01)
    useful = flops.score(3, 17, lengths={"click": 2, "impression": 0}).total
    assert 0 < useful <= executed
    assert flops.score(6, 34).total == pytest.approx(2 * flops.score(3, 17).total)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("din", "dcn_v2")])  # their variants hold more operators
@torch.no_grad()
def test_an_independent_engine_computes_what_the_twin_computes(schema: Schema, name: str, tmp_path: Path) -> None:
    model = built(schema, name, layers=SHALLOW.get(name))
    given = encode_inputs(model.encode_user.signature)
    states = model.encode_user(*given.values())
    for graph, inputs in ((model.encode_user, given), (model.score_candidates, score_inputs(model, states))):
        path = tmp_path / f"{graph.signature.name}.onnx"
        path.write_bytes(export_graph(graph, graph.signature, inputs).SerializeToString())
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert {i.name for i in session.get_inputs()} == {spec.name for spec in graph.signature.inputs}
        smaller = {k: v[:2] for k, v in inputs.items()}  # sizes that were not traced
        if "request_index" in inputs:
            smaller = {k: v[:5] if k.startswith("item_") else v for k, v in inputs.items()}
            smaller["request_index"] = inputs["request_index"][:5]
        for call in (inputs, smaller):
            outputs = session.run(None, {k: v.numpy() for k, v in call.items()})
            for spec, found, wanted in zip(graph.signature.outputs, outputs, graph(*call.values()), strict=True):
                np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-4, atol=2e-5, err_msg=spec.name)
