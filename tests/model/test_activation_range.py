"""A19: cheaper forms of GELU stay within their bounds on the scores that a model really produces; the range is printed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.activations import activate
from kernels.gdpa import padded
from model.architectures.registry import load_preset
from model.ranker import KunlunRanker
from model.schema import Schema
from tests.model.conftest import TABLE_ROWS
from tests.model.test_user_split import ENCODE_SIZES, inputs

COEFFICIENTS = {6: (0.3989422804, -0.0664903801, 0.0099735570), 8: (0.3989422804, -0.0664903801, 0.0099735570, -0.00118733)}
"""x · Φ(x) around 0: ½x + x² (c2 + x² (c4 + x² (c6 + …))); degree 8 is also good where the scores go on to 1.5."""


def taylor_gelu(x: Tensor, degree: int) -> Tensor:
    """GELU's Maclaurin series up to `degree`."""
    tail = torch.zeros_like(x)
    for c in reversed(COEFFICIENTS[degree]):
        tail = c + x * x * tail
    return 0.5 * x + x * x * tail


@pytest.fixture
def observed(schema: Schema, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Pre-activation scores of every GDPA call of an initialised `small` model with the default scale."""
    seen: list[Tensor] = []

    def watched(scores: Tensor, names: tuple[str, ...], head_dim: int) -> Tensor:
        seen.append(scores.detach())
        return activate(scores, names, head_dim)

    monkeypatch.setattr(padded, "activate", watched)
    torch.manual_seed(0)
    model = KunlunRanker(schema, load_preset("small"), TABLE_ROWS).eval()
    with torch.no_grad():
        model.encode_user(*inputs(model.encode_user.signature, ENCODE_SIZES).values())
    return seen


@pytest.mark.parametrize(("degree", "limit", "bound"), [(6, 1.0, 1.1e-3), (6, 1.5, 2.5e-2), (8, 1.0, 1.1e-4), (8, 1.5, 5.6e-3)])
def test_a19_taylor_gelu_is_as_close_as_stated(degree: int, limit: float, bound: float) -> None:
    x = torch.linspace(-limit, limit, 10_001, dtype=torch.float64)
    worst = (taylor_gelu(x, degree) - F.gelu(x)).abs().max().item()
    assert 0.9 * bound <= worst <= 1.05 * bound


def test_a19_tanh_gelu_is_as_close_as_stated_everywhere() -> None:
    x = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    assert (activate(x, ("fast_gelu",), 0) - activate(x, ("gelu",), 0)).abs().max() <= 4.8e-4


def test_a19_on_the_scores_of_a_model(observed: list[Tensor]) -> None:
    scores = torch.cat([s.flatten() for s in observed]).double()
    scores = scores[scores != 0]  # of padding
    largest, deviation = scores.abs().max().item(), scores.std().item()
    print(f"GDPA scores: {scores.numel():,}, deviation {deviation:.3f}, largest {largest:.2f}")
    assert deviation == pytest.approx(1.0, rel=0.35), "paper+gain starts with scores of unit variance"
    assert largest <= math.sqrt(64) * math.sqrt(2) * 1.01, "|q̂_h| ≤ √d and |k_h| = √d_h bound a score"
    assert (activate(scores, ("fast_gelu",), 0) - F.gelu(scores)).abs().max() <= 4.8e-4
    inside = scores[scores.abs() <= 1.0]
    assert inside.numel() > 0.5 * scores.numel()
    assert (taylor_gelu(inside, 6) - F.gelu(inside)).abs().max() <= 1.1e-3 * 1.05
