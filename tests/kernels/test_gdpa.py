"""GDPA and the PFFN block: acceptance tests A1, A3, A4, A5, A7, A9 of the model specification."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.activations import NAMES
from kernels.dispatch import GDPAParams, Jagged, gdpa, pffn
from kernels.gdpa.reference import rms_norm

HEADS, WIDTH, N_KV = 2, 8, 5
LENGTHS = [3, 0, 1, 16, 7]  # an empty row, a single token, a full tile and lengths off it


def ragged(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Jagged q [sum_T, H, d_h], dense k and v [B · n_kv, H, d_h], offsets [B + 1]."""
    torch.manual_seed(seed)
    q = torch.randn(sum(LENGTHS), HEADS, WIDTH, dtype=dtype)
    k, v = (torch.randn(len(LENGTHS) * N_KV, HEADS, WIDTH, dtype=dtype) for _ in range(2))
    return q, k, v, torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])


def padded(rows: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """Jagged rows [sum_T, …] → [B, steps, …] with zeros."""
    out = rows.new_zeros((len(offsets) - 1, steps, *rows.shape[1:]))
    for b in range(len(offsets) - 1):
        out[b, : offsets[b + 1] - offsets[b]] = rows[offsets[b] : offsets[b + 1]]
    return out


def packed(out: Tensor, offsets: Tensor) -> Tensor:
    """The inverse of `padded`."""
    return torch.cat([out[b, : offsets[b + 1] - offsets[b]] for b in range(len(offsets) - 1)])


@pytest.mark.parametrize("activation", NAMES)
def test_a1_gdpa_is_a_generated_two_layer_network_per_sample(activation: str) -> None:
    q, k, v, offsets = ragged(1)
    params = GDPAParams((activation,), 0.3, 0.7)
    got = gdpa(q, k, v, params, Jagged(offsets, N_KV))
    act = {
        "raw": lambda x: x, "relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
        "relu_square": lambda x: F.relu(x) ** 2, "gelu": F.gelu, "fast_gelu": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu, "hardswish": F.hardswish,
    }[activation]  # fmt: skip
    for b in range(len(LENGTHS)):
        for h in range(HEADS):
            first, second = k[b * N_KV : (b + 1) * N_KV, h], v[b * N_KV : (b + 1) * N_KV, h]
            for t in range(offsets[b], offsets[b + 1]):
                want = 0.7 * (second.T @ act(0.3 * first @ q[t, h]))
                torch.testing.assert_close(got[t, h], want, rtol=1e-10, atol=1e-10)


def test_a3_raw_activation_is_a_linear_map() -> None:
    q, k, v, offsets = ragged(2)
    got = gdpa(q, k, v, GDPAParams(("raw",), 0.5, 1.0), Jagged(offsets, N_KV))
    for b in range(len(LENGTHS)):
        rows = slice(int(offsets[b]), int(offsets[b + 1]))
        for h in range(HEADS):
            kv = k[b * N_KV : (b + 1) * N_KV, h].T @ v[b * N_KV : (b + 1) * N_KV, h]
            torch.testing.assert_close(got[rows, h], 0.5 * q[rows, h] @ kv, rtol=1e-10, atol=1e-10)


def test_a3_relu_commutes_with_a_positive_scale() -> None:
    q, k, v, offsets = ragged(3)
    inside = gdpa(q, k, v, GDPAParams(("relu",), 0.25, 1.0), Jagged(offsets, N_KV))
    outside = gdpa(q, k, v, GDPAParams(("relu",), 1.0, 0.25), Jagged(offsets, N_KV))
    torch.testing.assert_close(inside, outside, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", [gdpa, pffn])
@pytest.mark.parametrize("activation", [("fast_gelu",), ("silu", "relu")])
def test_a4_jagged_equals_padded_forward_and_backward(operator, activation: tuple[str, ...]) -> None:
    q, k, v, offsets = ragged(4)
    params = GDPAParams(activation, 0.4, 0.9)
    weight = torch.randn_like(q)
    jagged_leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    (operator(*jagged_leaves, params, Jagged(offsets, N_KV)) * weight).sum().backward()
    padded_leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    pq = padded(padded_leaves[0], offsets, max(LENGTHS) + 2)
    out = operator(pq, *(x.unflatten(0, (-1, N_KV)) for x in padded_leaves[1:]), params)
    (packed(out, offsets) * weight).sum().backward()
    torch.testing.assert_close(packed(out, offsets), operator(q, k, v, params, Jagged(offsets, N_KV)), rtol=1e-9, atol=1e-9)
    for ours, twin in zip(padded_leaves, jagged_leaves, strict=True):
        torch.testing.assert_close(ours.grad, twin.grad, rtol=1e-8, atol=1e-9)


def test_padding_rows_stay_exactly_zero_through_the_block() -> None:
    q, k, v, offsets = ragged(5, torch.float32)
    out = pffn(padded(q, offsets, 20), k.unflatten(0, (-1, N_KV)), v.unflatten(0, (-1, N_KV)), GDPAParams())
    for b, length in enumerate(LENGTHS):
        assert torch.count_nonzero(out[b, length:]) == 0


def test_a7_block_equals_its_composition_and_norms_span_all_heads() -> None:
    q, k, v, offsets = ragged(6)
    q = q * torch.tensor([1.0, 30.0], dtype=q.dtype)[None, :, None]  # unequal heads: a per-head norm would differ
    got = pffn(q, k, v, GDPAParams(), Jagged(offsets, N_KV))
    flat = q.flatten(1)
    normed = (flat - flat.mean(-1, keepdim=True)) / (flat.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    mixed = gdpa(normed.view_as(q), k, v, GDPAParams(), Jagged(offsets, N_KV)).flatten(1) + normed
    want = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-5).sqrt() + flat
    torch.testing.assert_close(got.flatten(1), want, rtol=1e-9, atol=1e-9)
    per_head = rms_norm(mixed.view_as(q)).flatten(1) + flat
    assert not torch.allclose(got.flatten(1), per_head, rtol=1e-3)


def test_a9_no_leakage_across_packed_samples() -> None:
    q, k, v, offsets = ragged(7)
    before = pffn(q, k, v, GDPAParams(), Jagged(offsets, N_KV))
    q[offsets[3] : offsets[4]] += 1.0
    k[3 * N_KV : 4 * N_KV] *= 2.0
    after = pffn(q, k, v, GDPAParams(), Jagged(offsets, N_KV))
    assert torch.equal(before[: offsets[3]], after[: offsets[3]])
    assert torch.equal(before[offsets[4] :], after[offsets[4] :])
    assert not torch.equal(before[offsets[3] : offsets[4]], after[offsets[3] : offsets[4]])


@pytest.mark.parametrize("operator", [gdpa, pffn])
def test_candidates_read_their_users_block_without_copies(operator) -> None:
    q, k, v, offsets = ragged(9)
    users = torch.tensor([2, 0, 2, 1, 2])
    shared = operator(q, k[: 3 * N_KV], v[: 3 * N_KV], GDPAParams(), Jagged(offsets, N_KV, users))
    copied = [x.unflatten(0, (-1, N_KV))[users].flatten(0, 1) for x in (k, v)]
    torch.testing.assert_close(shared, operator(q, *copied, GDPAParams(), Jagged(offsets, N_KV)), rtol=1e-12, atol=1e-12)


def test_wrong_shapes_are_named() -> None:
    q, k, v, offsets = ragged(8)
    with pytest.raises(ValueError, match=r"expected q \[sum_T, H, d_h\] and k, v .* found q \(27, 2, 8\), k \(25, 2, 4\)"):
        gdpa(q, k[..., :4], v[..., :4], GDPAParams(), Jagged(offsets, N_KV))
    with pytest.raises(ValueError, match="expected a multiple of n_kv = 4"):
        gdpa(q, k, v, GDPAParams(), Jagged(offsets, 4))
    with pytest.raises(ValueError, match="expected one of raw, relu"):
        gdpa(q, k, v, GDPAParams(("softmax",)), Jagged(offsets, N_KV))
