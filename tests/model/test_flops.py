"""The closed FLOP formulas against torch's own counter (A14), and their round trip through the manifest."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.architectures.kunlun.config import KunlunConfig
from model.architectures.kunlun.flops import window_pairs
from model.architectures.registry import load_preset
from model.flops import FlopModel, flop_model
from model.layers.served_form import served_form
from model.ranker import KunlunRanker
from model.schema import Schema

LITERAL = {"tokens": 8, "width": 24, "head_hidden": 16, "wukong": {"experts": 2, "fm_rank": 3, "hidden": 20}}
TABLE_ROWS = {"item": 40, "genre": 12, "surface": 51, "user.age": 5}


def counted(module: torch.nn.Module, sizes: dict[str, int]) -> int:
    """Matrix-product FLOPs of one call with every dynamic size as given, by torch's counter."""
    inputs = [
        torch.zeros([sizes[s] if isinstance(s, str) else s for s in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in module.signature.inputs
    ]
    module.requires_grad_(False)  # views of parameters confuse the counter
    with torch.no_grad(), served_form(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize(("click", "impression"), [(12, 24), (3, 7), (8, 8)])
def test_encode_formula_equals_torchs_count(schema: Schema, preset: str, click: int, impression: int) -> None:
    config = load_preset(preset)
    model = KunlunRanker(schema, config, TABLE_ROWS)
    flops, users = flop_model(schema, config), 3
    found = counted(model.encode_user, {"U": users, "T_click": click, "T_impression": impression})
    one = flops.encode({"click": click, "impression": impression}, executed=True)
    assert users * one.total + flops.constant("encode_user") == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("candidate", [{}, {"candidate": LITERAL}], ids=["gated", "wukong"])
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_score_formula_equals_torchs_count(schema: Schema, preset: str, candidate: dict[str, object]) -> None:
    config = KunlunConfig.model_validate(load_preset(preset).model_dump() | candidate)
    model = KunlunRanker(schema, config, TABLE_ROWS)
    found = counted(model.score_candidates, {"R": 3, "C": 17})
    flops = flop_model(schema, config)
    assert flops.score(3, 17, executed=True).total == pytest.approx(found, rel=1e-9)
    assert flops.score(3, 17).total <= found


def test_towers_of_different_depth_are_counted(schema: Schema) -> None:
    data = load_preset("tiny").model_dump()
    data["towers"] = {"impression": data["default_tower"] | {"layers": 1, "width": 16, "n_seeds": 8, "n_tokens": 2}}
    config = KunlunConfig.model_validate(data)
    model = KunlunRanker(schema, config, TABLE_ROWS)
    found = counted(model.encode_user, {"U": 2, "T_click": 10, "T_impression": 6})
    flops = flop_model(schema, config)
    one = flops.encode({"click": 10, "impression": 6}, executed=True).total
    assert 2 * one + flops.constant("encode_user") == pytest.approx(found, rel=1e-9)


def test_useful_work_never_exceeds_executed_work(schema: Schema) -> None:
    flops = flop_model(schema, load_preset("tiny"))
    for steps in range(25):
        lengths = {"click": min(steps, 12), "impression": steps}
        assert flops.encode(lengths).total <= flops.encode(lengths, executed=True).total


def test_window_pairs_equal_brute_force() -> None:
    for steps in range(12):
        for window in range(1, 6):
            brute = sum(abs(i - j) <= window for i in range(steps) for j in range(steps))
            assert window_pairs(steps, window) == brute


def test_manifest_form_rebuilds_the_same_formulas(schema: Schema) -> None:
    config = load_preset("small")
    flops = flop_model(schema, config)
    again = FlopModel.from_json(flops.to_json(), config)
    lengths = {"click": 5, "impression": 20}
    assert again.encode(lengths) == flops.encode(lengths)
    assert again.per_candidate == flops.per_candidate > 0
    with pytest.raises(ValueError, match=r"flops\.formula_version: expected 1, found 9"):
        FlopModel.from_json(flops.to_json() | {"formula_version": 9}, config)
