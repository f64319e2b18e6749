"""Every row of the ablations is a whole model: batch-invariant (A6), without dead parts (A13), with exact FLOPs (A14)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model.architectures.registry import load_preset, parse_architecture
from model.flops import flop_model
from model.layers.served_form import served_form
from model.ranker import KunlunRanker
from model.schema import Schema
from tests.model.architectures.ablations import MODELS
from tests.model.conftest import TABLE_ROWS
from tests.model.test_flops import counted
from tests.model.test_user_split import ENCODE_SIZES, LENGTHS, inputs

TOWER = load_preset("tiny").model_dump()["default_tower"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=MODELS)
def ranker(request: pytest.FixtureRequest, schema: Schema) -> KunlunRanker:
    torch.manual_seed(0)
    return KunlunRanker(schema, parse_architecture(MODELS[request.param]), TABLE_ROWS).eval()


def scored(model: KunlunRanker, users: dict[str, Tensor], candidates: dict[str, Tensor]) -> Tensor:
    """Logits of both graphs, one after the other."""
    states = model.encode_user(*users.values())
    named = candidates | dict(zip((s.name for s in model.encode_user.signature.outputs), states, strict=True))
    return model.score_candidates.raw_logits(*(named[spec.name] for spec in model.score_candidates.signature.inputs))


def drawn(model: KunlunRanker, candidates: int = 7) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of both graphs for three users, one of whom has no click and one no impression."""
    names = {spec.name for spec in model.encode_user.signature.outputs}
    signature = model.score_candidates.signature
    own = type(signature)(signature.name, tuple(s for s in signature.inputs if s.name not in names), signature.outputs)
    return inputs(model.encode_user.signature, ENCODE_SIZES), inputs(own, {"R": 3, "C": candidates})


def shortened(users: dict[str, Tensor], user: int) -> dict[str, Tensor]:
    """One user alone, histories padded as little as they allow."""
    alone = {k: v[user : user + 1] for k, v in users.items()}
    for event, lengths in LENGTHS.items():
        for part in ("rows", "dense", "age"):
            if f"{event}_{part}" in alone:
                alone[f"{event}_{part}"] = alone[f"{event}_{part}"][:, : max(1, lengths[user])]
    return alone


@torch.no_grad()
def test_a6_a_score_depends_on_neither_batch_mates_nor_padding_nor_form(ranker: KunlunRanker) -> None:
    users, candidates = drawn(ranker)
    together = scored(ranker, users, candidates)
    assert together.std() > 1e-3, "the scores are all the same"
    with served_form():
        torch.testing.assert_close(scored(ranker, users, candidates), together, rtol=2e-4, atol=2e-5)
        for user in range(3):
            own = candidates["request_index"] == user
            mine = {k: v[own] if k.startswith("item_") else v[user : user + 1] for k, v in candidates.items()}
            mine["request_index"] = torch.zeros(int(own.sum()), dtype=torch.int64)
            torch.testing.assert_close(scored(ranker, shortened(users, user), mine), together[own], rtol=2e-4, atol=2e-5)


def test_a13_every_parameter_learns(ranker: KunlunRanker) -> None:
    scored(ranker, *drawn(ranker)).square().sum().backward()
    dead = [n for n, p in ranker.named_parameters() if not n.startswith("tables.") and (p.grad is None or not p.grad.any())]
    assert dead == []


def test_a14_flops_equal_a_counted_run(ranker: KunlunRanker) -> None:
    flops, lengths = flop_model(ranker.schema, ranker.config), {"click": 3, "impression": 17}
    found = counted(ranker.encode_user, {"U": 2, "T_click": 3, "T_impression": 17})
    assert 2 * flops.encode(lengths, executed=True).total + flops.constant("encode_user") == pytest.approx(found, rel=1e-9)
    found = counted(ranker.score_candidates, {"R": 3, "C": 5})
    executed = flops.score(3, 5, executed=True)
    assert executed.total + flops.constant("score_candidates") == pytest.approx(found, rel=1e-9)
    useful = flops.score(3, 5, lengths=lengths)
    assert flops.encode(lengths).total <= flops.encode(lengths, executed=True).total
    assert useful.total <= executed.total
    assert useful.parts.keys() <= executed.parts.keys()
    alone = sum(flops.score(1, c, lengths=lengths).total for c in (2, 2, 1))
    assert alone == pytest.approx(useful.total), "useful work is linear in requests and candidates"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"default_tower": {"layers": 2}}, "its last self-attention would never be read; use 1 or 3"),
        ({"share_towers": True, "towers": {"click": {}}}, "towers.click.width: required key is missing"),
        (
            {"share_towers": True, "towers": {"click": TOWER}},
            "leave one of the two out",
        ),
        ({"user_interaction": {"experts": 3}}, "user_tokens 4 must be a multiple of user_interaction.experts 3"),
        ({"activation": ["gelu"] * 3}, "activation: 3 given, default_tower has 2 heads"),
        ({"default_tower": {"layers": 5}}, "default_tower: layers 5 exceeds the model's 3"),
        ({"default_tower": {"attention": "sliding"}}, "attention: Input should be 'window', 'dense' or 'block'"),
    ],
)
def test_dead_or_impossible_parts_are_refused_with_the_reason(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_architecture({"preset": "tiny"} | change)


def test_what_a_schema_does_not_have_is_refused(schema: Schema) -> None:
    too_many = parse_architecture({"preset": "tiny", "default_tower": {"n_recent": 13}})
    with pytest.raises(ValueError, match="n_recent: 13 exceeds the cap 12 of event type 'click'"):
        KunlunRanker(schema, too_many, TABLE_ROWS)
