"""The CPU parts' benchmark: every part runs as exported, and its work is counted by the formulas of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import cpu_graph, encode_user
from model.architectures.kunlun.flops import window_pairs
from model.architectures.registry import load_preset
from serving.engines.openvino_kernels.build import LIBRARY


def test_flops_count_real_pairs() -> None:
    found = {part.name: part for part in cpu_graph.parts(cpu_graph.SMALL)}
    assert found["GDPA"].flops(2, 100) == 4 * 2 * 100 * 64 * 128
    assert found["GDPA"].flops(2, 100) == found["PFFN block, kernel"].flops(2, 100)
    projections = 8 * 100 * 128 * 128
    assert found["window attention"].flops(1, 100) == projections + 4 * 128 * window_pairs(100, 50)
    pooled = 4 * 100 * 128**2 + 4 * 32 * 100 * 128 + 2 * 32 * 128**2 + 2 * 4 * (32 * 8 * 128 + 8 * 128**2)
    assert found["seed pooling"].flops(3, 100) == 3 * pooled


@pytest.mark.slow
def test_every_part_runs_and_is_held_against_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_graph, "SHAPES", ((1, 60),))
    shares = cpu_graph.measure(cpu_graph.SMALL, "f32", rounds=1, library=None)
    assert set(shares) == {"GDPA", "PFFN block, operators", "window attention", "seed pooling"}
    assert all(0 < share["1x60"] < 2 for share in shares.values())


def test_gain_is_the_median_over_rounds_and_the_least_of_long_histories() -> None:
    pair = encode_user.Pair(lambda: None, lambda: None, seconds=[(2.0, 1.0), (9.0, 3.0), (3.0, 2.0)])
    assert pair.figures()["gain"] == 2.0
    rows = {"1x64": {"gain": 0.5}, "1x256": {"gain": 1.2}, "4x1024": {"gain": 1.1}}
    assert encode_user.least_gain({"f32": rows}) == 1.1


def test_both_forms_run_in_every_round_in_alternating_order() -> None:
    order: list[str] = []
    pair = encode_user.Pair(lambda: order.append("plain"), lambda: order.append("fused"))
    pair.block(fused_first=False)
    pair.block(fused_first=True)
    assert order == ["plain", "fused", "fused", "plain"]
    assert len(pair.seconds) == 2


@pytest.mark.slow
def test_whole_graphs_run_with_and_without_the_block(fused_engine_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small model; the command takes `small`."""
    tiny = load_preset("tiny").model_copy(update={"n_kv": 16})
    settings = {"STEPS": (64,), "USERS": (1,), "BLOCK_S": 0.0, "load_preset": lambda _: tiny}
    for name, value in settings.items():
        monkeypatch.setattr(encode_user, name, value)
    found = encode_user.measure("f32", rounds=1, library=next(fused_engine_cache.glob(f"*/{LIBRARY}")))
    assert set(found) == {"1x64"}
    assert found["1x64"]["plain_ms"] > 0 < found["1x64"]["fused_ms"]
