"""Seed pooling over jagged rows: the plain form (A4, A9, A11) and the kernels against it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from ragged import BOUND, LENGTHS, offsets_of, relative_error, rows
from torch import Tensor

from kernels.dispatch import seed_pooling
from kernels.seed_pooling import triton_backward, triton_forward
from kernels.seed_pooling.reference import seed_pooling_jagged, seed_pooling_jagged_backward
from kernels.tiling import Tiling

SMALL = Tiling(queries=16, keys=16)
SEEDS, HEADS, WIDTH = 19, 2, 24  # off the tile sizes


def batch(dtype: torch.dtype, lengths: list[int] = LENGTHS, seeds: int = SEEDS, width: int = WIDTH) -> tuple[Tensor, ...]:
    e = rows(seeds, HEADS, width, dtype=dtype, seed=1)
    k, v = (rows(sum(lengths), HEADS, width, dtype=dtype, seed=seed) for seed in (2, 3))
    return e, k, v, offsets_of(lengths)


def test_a4_pooling_is_attention_per_sample_and_0_without_rows() -> None:
    e, k, v, offsets = batch(torch.float64)
    got, bounds = seed_pooling(e, k, v, offsets), offsets.tolist()
    full = torch.nn.functional.scaled_dot_product_attention
    for sample, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            assert torch.equal(got[sample], torch.zeros_like(e))
        else:
            want = full(*(x.transpose(0, 1) for x in (e, k[begin:end], v[begin:end]))).transpose(0, 1)
            torch.testing.assert_close(got[sample], want, rtol=1e-10, atol=1e-10)


def test_a11_the_order_of_a_history_does_not_matter() -> None:
    e, k, v, offsets = batch(torch.float64, [11])
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        seed_pooling(e, k[order], v[order], offsets), seed_pooling(e, k, v, offsets), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_agree_with_the_plain_form(dtype: torch.dtype) -> None:
    e, k, v, offsets = batch(dtype)
    exact = [x.double() for x in (e, k, v)]
    want, sums = seed_pooling_jagged(*exact, offsets)
    got, got_sums = triton_forward.forward(e, k, v, offsets, SMALL)
    assert got.dtype == dtype
    assert relative_error(got, want) <= BOUND[dtype]
    assert torch.equal(got[1], torch.zeros_like(got[1]))
    torch.testing.assert_close(got_sums.double(), sums, rtol=1e-5, atol=1e-4)
    d_out = rows(*got.shape, dtype=dtype, seed=4)
    wanted = seed_pooling_jagged_backward(d_out.double(), *exact, want, sums, offsets)
    found = triton_backward.backward(d_out, e, k, v, got, got_sums, offsets, SMALL)
    for name, x, y in zip(("seeds", "k", "v"), found, wanted, strict=True):
        assert relative_error(x, y) <= 2 * BOUND[dtype], name


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a6_a9_a_sample_has_the_same_bits_alone_and_beside_other_neighbours() -> None:
    e, k, v, offsets = batch(torch.float32)
    begin, end = offsets.tolist()[2:4]
    whole, _ = triton_forward.forward(e, k, v, offsets, SMALL)
    alone, _ = triton_forward.forward(e, k[begin:end], v[begin:end], offsets_of([end - begin]), SMALL)
    for x in (k, v):
        x[:begin], x[end:] = 1e3, float("nan")
    beside, _ = triton_forward.forward(e, k, v, offsets, SMALL)
    assert torch.equal(whole[2], alone[0])
    assert torch.equal(whole[2], beside[2])


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_batches_without_rows(lengths: list[int]) -> None:
    e, k, v, offsets = batch(torch.float32, lengths)
    out, sums = triton_forward.forward(e, k, v, offsets, SMALL)
    assert torch.equal(out, torch.zeros(len(lengths), SEEDS, HEADS, WIDTH, device=out.device))
    d_seeds, dk, dv = triton_backward.backward(out, e, k, v, out, sums, offsets, SMALL)
    assert torch.equal(d_seeds, torch.zeros_like(e))
    assert dk.shape == dv.shape == k.shape


def test_the_operator_keeps_torchs_rules_and_has_true_gradients() -> None:
    *given, offsets = batch(torch.float64, [4, 0, 2], seeds=3, width=4)
    leaves: list[Tensor] = [x.requires_grad_() for x in given]
    torch.library.opcheck(torch.ops.kunlun.seed_pooling.default, (*leaves, offsets))
    assert torch.autograd.gradcheck(lambda *x: torch.ops.kunlun.seed_pooling(*x, offsets)[0], leaves)


def test_backends_agree_through_the_dispatcher() -> None:
    leaves = [x.requires_grad_() for x in batch(torch.float32, [5, 0, 17])[:3]]
    got, want = (seed_pooling(*leaves, offsets_of([5, 0, 17]), backend=b) for b in ("triton", "reference"))
    assert relative_error(got, want.detach().double()) <= BOUND[torch.float32]
    d_out = rows(*got.shape, dtype=torch.float32, seed=4)
    for x, y in zip(*(torch.autograd.grad(out, leaves, d_out) for out in (got, want)), strict=True):
        assert relative_error(x, y.double()) <= 2 * BOUND[torch.float32]


def test_what_does_not_fit_is_named() -> None:
    e, k, v, offsets = batch(torch.float32)
    with pytest.raises(ValueError, match=r"of equal H and d_h, found seeds \(19, 1, 24\)"):
        seed_pooling(e[:, :1], k, v, offsets)
    with pytest.raises(ValueError, match=r"seed_pooling: expected offsets as int32 or int64 \[B \+ 1\] .* \(3, 2\)"):
        seed_pooling(e, k, v, offsets.view(3, 2))
