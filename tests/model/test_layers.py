"""Layers: A10 (SumKron), A11 (HSP), A12 (FM), A18 (ROTE), and gradients of padding (A5)."""

from __future__ import annotations

import torch

from model.architectures.kunlun.options import WukongConfig
from model.layers.rote import RotaryTemporal
from model.layers.seed_pooling import HierarchicalSeedPooling, SumKronLinear
from model.layers.tokens import HistoryTokens
from model.layers.wukong import WukongExpert, WukongMixture


def test_a10_sumkron_is_a_sum_of_kronecker_products() -> None:
    torch.manual_seed(0)
    layer = SumKronLinear(6, 3, 4, 2).double()
    x = torch.randn(5, 6, 4, dtype=torch.float64)
    dense = sum(torch.kron(layer.z[i].T.contiguous(), layer.w[i].T.contiguous()) for i in range(2))
    want = (x.flatten(1) @ dense.T).unflatten(1, (3, 4))
    torch.testing.assert_close(layer(x), want, rtol=1e-10, atol=1e-10)


def test_a10_parameter_count_of_the_published_example() -> None:
    layer = SumKronLinear(256, 32, 384, 8)
    assert sum(p.numel() for p in layer.parameters()) == 1_245_184


def test_a11_pooling_ignores_order_and_an_empty_history_gives_zero() -> None:
    torch.manual_seed(0)
    pool = HierarchicalSeedPooling(16, 2, 8, 4, 2).double()
    s = torch.randn(2, 10, 16, dtype=torch.float64)
    lengths = torch.tensor([10, 10])
    torch.testing.assert_close(pool(s, lengths), pool(s[:, torch.randperm(10)], lengths), rtol=1e-9, atol=1e-9)
    empty = pool(torch.zeros(1, 10, 16, dtype=torch.float64), torch.tensor([0]))
    assert torch.count_nonzero(empty) == 0


def test_a11_padding_does_not_reach_the_summary() -> None:
    torch.manual_seed(0)
    pool = HierarchicalSeedPooling(16, 2, 8, 4, 2).double()
    s = torch.randn(1, 6, 16, dtype=torch.float64)
    long = torch.cat([s, torch.randn(1, 5, 16, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(pool(s, torch.tensor([6])), pool(long, torch.tensor([6])), rtol=1e-9, atol=1e-9)


def test_a12_factorization_never_forms_the_token_square() -> None:
    torch.manual_seed(0)
    expert = WukongExpert(7, 4, 6, 3, 16).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    want = (x @ x.transpose(1, 2)) @ expert.y
    torch.testing.assert_close(expert.factorize(x), want, rtol=1e-10, atol=1e-10)
    wide = WukongExpert(512, 4, 2, 1, 4)
    largest: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.numel())
            return out

    with Watch(), torch.no_grad():
        wide.factorize(torch.randn(1, 512, 2))
    assert max(largest) < 512 * 512


def test_experts_deal_tokens_with_stride_so_that_all_meet_in_the_next_layer() -> None:
    torch.manual_seed(0)
    mix = WukongConfig(experts=2, fm_rank=2, hidden=8)
    first, second = WukongMixture(4, 2, 8, mix), WukongMixture(4, 2, 8, mix)
    x, h = torch.randn(1, 4, 8), torch.randn(1, 2, 8)
    base = second(first(x, h), h)
    for token in range(4):
        moved = x.clone()
        moved[0, token] += torch.randn(8)
        changed = (second(first(moved, h), h) - base).abs().amax(-1)[0]
        assert (changed > 1e-6).all(), f"token {token} does not reach every token of the second layer"


def test_a18_position_rotation_is_relative() -> None:
    torch.manual_seed(0)
    rote = RotaryTemporal(16, 3600.0)
    q, k = torch.randn(1, 1, 12, 16), torch.randn(1, 1, 12, 16)
    cos, sin = rote.angles(torch.zeros(1, 20))
    early = rote.rotate(q, cos[:, :, :12], sin[:, :, :12]) @ rote.rotate(k, cos[:, :, :12], sin[:, :, :12]).transpose(-1, -2)
    late = rote.rotate(q, cos[:, :, 8:], sin[:, :, 8:]) @ rote.rotate(k, cos[:, :, 8:], sin[:, :, 8:]).transpose(-1, -2)
    torch.testing.assert_close(early, late, rtol=1e-4, atol=1e-4)


def test_a5_padding_events_get_no_gradient() -> None:
    torch.manual_seed(0)
    tokens = HistoryTokens(5, 8)
    features = torch.randn(2, 6, 5, requires_grad=True)
    tokens(features, torch.tensor([4, 0])).square().sum().backward()
    assert features.grad is not None
    assert torch.count_nonzero(features.grad[0, 4:]) == 0
    assert torch.count_nonzero(features.grad[1]) == 0
    assert torch.count_nonzero(features.grad[0, :4]) > 0
