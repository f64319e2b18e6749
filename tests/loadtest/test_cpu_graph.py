"""The CPU parts' benchmark: every part runs as exported, and its work is counted by the formulas of the model."""

from __future__ import annotations

import pytest

from loadtest import cpu_graph
from model.architectures.kunlun.flops import window_pairs


def test_flops_count_real_pairs() -> None:
    found = {part.name: part for part in cpu_graph.parts(cpu_graph.SMALL)}
    assert found["GDPA"].flops(2, 100) == 4 * 2 * 100 * 64 * 128
    assert found["GDPA"].flops(2, 100) == found["PFFN block, kernel"].flops(2, 100)
    projections = 8 * 100 * 128 * 128
    assert found["window attention"].flops(1, 100) == projections + 4 * 128 * window_pairs(100, 50)


@pytest.mark.slow
def test_every_part_runs_and_is_held_against_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_graph, "SHAPES", ((1, 60),))
    shares = cpu_graph.measure(cpu_graph.SMALL, "f32", rounds=1, library=None)
    assert set(shares) == {"GDPA", "PFFN block, operators", "window attention", "seed pooling"}
    assert all(0 < share["1x60"] < 2 for share in shares.values())
