"""Target pooling: both forms agree, absent events add nothing, state and FLOPs are declared, engines give the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from torch import Tensor

from model.architectures.kunlun.config import KunlunConfig
from model.architectures.registry import parse_architecture
from model.config import parse_yaml
from model.export.graphs import export_graph
from model.export.writer import example_inputs
from model.flops import flop_model
from model.layers.served_form import served_form
from model.layers.target_pooling import TargetMemory
from model.ranker import KunlunRanker
from model.schema import Schema
from tests.model.conftest import TABLE_ROWS
from tests.model.test_flops import counted
from tests.model.test_user_split import ENCODE_SIZES, LENGTHS, inputs
from tests.serving.random_artifact import SCHEMA, random_inputs

WEIGHTS = ("softmax", "sigmoid")


def pooling_config(weights: str, **changes: object) -> KunlunConfig:
    config = parse_architecture({"preset": "tiny", "target_pooling": {"seeds": 3, "width": 8, "weights": weights}} | changes)
    assert isinstance(config, KunlunConfig)
    return config


def ranker(schema: Schema, weights: str) -> KunlunRanker:
    torch.manual_seed(0)
    model = KunlunRanker(schema, pooling_config(weights), TABLE_ROWS).eval()
    for parameter in model.parameters():  # parts that start at 0 or 1 would hide mistakes
        if parameter.dim() <= 2 and parameter.numel() < 100:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def scores(model: KunlunRanker, given: dict[str, Tensor], candidates: dict[str, Tensor]) -> Tensor:
    states = model.encode_user(*given.values())
    named = dict(zip((s.name for s in model.encode_user.signature.outputs), states, strict=True))
    given = candidates | named
    return model.score_candidates.raw_logits(*(given[spec.name] for spec in model.score_candidates.signature.inputs))


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_the_served_form_computes_what_training_computes(schema: Schema, weights: str) -> None:
    model = ranker(schema, weights)
    given = inputs(model.encode_user.signature, ENCODE_SIZES | {"T_click": 12, "T_impression": 24})
    candidates = inputs(model.score_candidates.signature, {"R": 3, "C": 11})
    trained = scores(model, given, candidates)
    with served_form():
        served = scores(model, given, candidates)
    torch.testing.assert_close(served, trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_a6_other_requests_and_padding_change_nothing(schema: Schema, weights: str) -> None:
    model = ranker(schema, weights)
    given = inputs(model.encode_user.signature, ENCODE_SIZES)
    candidates = inputs(model.score_candidates.signature, {"R": 3, "C": 11})
    with served_form():
        together = scores(model, given, candidates)
        for user in range(3):
            own = candidates["request_index"] == user
            alone = {k: v[user : user + 1] for k, v in given.items()}
            for event, lengths in LENGTHS.items():
                for part in ("rows", "dense", "age"):
                    if f"{event}_{part}" in alone:
                        alone[f"{event}_{part}"] = alone[f"{event}_{part}"][:, : max(1, lengths[user])]
            mine = {k: v[own] if k.startswith("item_") else v[user : user + 1] for k, v in candidates.items()}
            mine["request_index"] = torch.zeros(int(own.sum()), dtype=torch.int64)
            torch.testing.assert_close(scores(model, alone, mine), together[own], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_without_any_event_nothing_is_added(schema: Schema, weights: str) -> None:
    model = ranker(schema, weights)
    pooling = model.score_candidates.stream.target_pooling
    given = inputs(model.encode_user.signature, ENCODE_SIZES) | {
        f"{e}_length": torch.zeros(3, dtype=torch.int64) for e in LENGTHS
    }
    memories = model.encode_user(*given.values())[3:]
    x = torch.randn(5, 64)
    index = torch.tensor([0, 1, 2, 0, 1])
    found = pooling(x, [TargetMemory(*memories[:3]), TargetMemory(*memories[3:])], index)
    assert torch.equal(found, x)


def test_its_state_and_its_work_are_declared(schema: Schema) -> None:
    config = pooling_config("sigmoid")
    plain = sum(s.row_bytes for s in config.model_copy(update={"target_pooling": None}).state_specs(schema, "U"))
    assert sum(s.row_bytes for s in config.state_specs(schema, "U")) == plain + 4 * (12 + 24) * (2 * 8 + 1)
    model, flops = KunlunRanker(schema, config, TABLE_ROWS), flop_model(schema, config)
    found = counted(model.encode_user, {"U": 2, "T_click": 7, "T_impression": 9})
    one = flops.encode({"click": 7, "impression": 9}, executed=True)
    assert 2 * one.total + flops.constant("encode_user") == pytest.approx(found, rel=1e-9)
    assert flops.score(3, 17, executed=True).total == pytest.approx(
        counted(model.score_candidates, {"R": 3, "C": 17}), rel=1e-9
    )
    one_event = {"click": 1, "impression": 0}
    none = {"click": 0, "impression": 0}
    assert flops.score(1, 1, lengths=one_event).total - flops.score(1, 1, lengths=none).total == 4 * 3 * 8
    assert flops.score(4, 9).total == pytest.approx(4 * flops.per_request + 9 * flops.per_candidate)


def test_every_parameter_learns(schema: Schema) -> None:
    model = ranker(schema, "sigmoid")
    candidates = inputs(model.score_candidates.signature, {"R": 3, "C": 11})
    scores(model, inputs(model.encode_user.signature, ENCODE_SIZES), candidates).square().sum().backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    names = {n for n, _ in model.named_parameters() if "target" in n}
    assert names == {n for n in learning if "target" in n}
    assert len(names) == 10


def test_an_engine_gives_a_candidate_the_same_bits_in_any_batch(tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    schema = parse_yaml(Schema, SCHEMA)
    one_layer = {"layers": 1, "default_tower": {"layers": 1}}
    encode, score = pooling_config("softmax", **one_layer).graphs(schema)
    compiled = {}
    for graph in (encode, score):
        path = tmp_path / f"{graph.signature.name}.onnx"
        proto = export_graph(graph, graph.signature, example_inputs(graph.signature))
        path.write_bytes(proto.SerializeToString())
        compiled[graph] = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    users = random_inputs(encode.signature, {"U": 5, "T_click": 16, "T_impression": 24}, rng)
    given = random_inputs(score.signature, {"R": 5, "C": 96}, rng)
    found = compiled[encode](users)
    states = {spec.name: np.array(found[i]) for i, spec in enumerate(encode.signature.outputs)}
    with torch.no_grad(), served_form():
        wanted = encode(*(torch.from_numpy(users[s.name]) for s in encode.signature.inputs))
    for value, twin in zip(states.values(), wanted, strict=True):
        np.testing.assert_allclose(value, twin.numpy(), rtol=1e-4, atol=1e-4)
    given |= states
    with torch.no_grad(), served_form():
        twin = score(*(torch.from_numpy(given[s.name]) for s in score.signature.inputs))[0].numpy()
    together = np.array(compiled[score](given)[0])
    np.testing.assert_allclose(together, twin, rtol=1e-4, atol=1e-4)
    for request in range(5):
        own = given["request_index"] == request
        alone = {k: v[own] if k.startswith("item_") else v[request : request + 1] for k, v in given.items()}
        alone["request_index"] = np.zeros(int(own.sum()), np.int64)
        assert np.array_equal(np.array(compiled[score](alone)[0]), together[own]), request
