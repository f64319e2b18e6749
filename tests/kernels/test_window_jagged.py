"""Jagged sliding-window attention: the plain form against its definition (A4, A8, A9), the kernels against the plain form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from ragged import BOUND, LENGTHS, offsets_of, relative_error, rows
from torch import Tensor

from kernels.dispatch import window_attention
from kernels.tiling import Tiling
from kernels.window import triton_backward, triton_forward
from kernels.window.padded import window_attention_dense
from kernels.window.reference import window_attention_jagged, window_attention_jagged_backward

SMALL = Tiling(queries=16, keys=16)
HEADS, WIDTH = 2, 24  # a width that no power of two holds


def batch(dtype: torch.dtype, lengths: list[int] = LENGTHS, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (rows(sum(lengths), HEADS, width, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    return q, k, v, offsets_of(lengths)


@pytest.mark.parametrize("window", [0, 1, 5, 36, 1000])
def test_a4_jagged_equals_padded_with_a_mask_forward_and_backward(window: int) -> None:
    q, k, v, offsets = batch(torch.float64)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = window_attention(*leaves, offsets, window)
    steps = max(LENGTHS)
    padded = [torch.zeros(len(LENGTHS), steps, HEADS, WIDTH, dtype=q.dtype) for _ in range(3)]
    real = torch.arange(steps) < torch.tensor(LENGTHS)[:, None]
    for x, rows_ in zip(padded, (q, k, v), strict=True):
        x[real] = rows_
        x.requires_grad_()
    dense = window_attention_dense(*(x.transpose(1, 2) for x in padded), torch.tensor(LENGTHS), window).transpose(1, 2)
    torch.testing.assert_close(out, dense[real], rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (dense[real] * weight).sum().backward()
    for leaf, x in zip(leaves, padded, strict=True):
        assert leaf.grad is not None
        assert x.grad is not None
        torch.testing.assert_close(leaf.grad, x.grad[real], rtol=1e-10, atol=1e-10)


def test_a8_a_window_that_covers_the_rows_is_full_attention() -> None:
    q, k, v, offsets = batch(torch.float64)
    full = torch.nn.functional.scaled_dot_product_attention
    for begin, end in pairwise(offsets.tolist()):
        alone = [x[begin:end].transpose(0, 1) for x in (q, k, v)]
        got = window_attention(q, k, v, offsets, max(LENGTHS) - 1)[begin:end]
        torch.testing.assert_close(got, full(*alone).transpose(0, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 6, 1000])
def test_kernels_agree_with_the_plain_form(dtype: torch.dtype, window: int) -> None:
    q, k, v, offsets = batch(dtype)
    exact = [x.double() for x in (q, k, v)]
    want, sums = window_attention_jagged(*exact, offsets, window)
    got, got_sums = triton_forward.forward(q, k, v, offsets, window, SMALL)
    assert got.dtype == dtype
    assert relative_error(got, want) <= BOUND[dtype]
    torch.testing.assert_close(got_sums.double(), sums, rtol=1e-5, atol=1e-4)
    d_out = rows(*q.shape, dtype=dtype, seed=4)
    wanted = window_attention_jagged_backward(d_out.double(), *exact, want, sums, offsets, window)
    found = triton_backward.backward(d_out, q, k, v, got, got_sums, offsets, window, SMALL)
    for name, x, y in zip("qkv", found, wanted, strict=True):
        if window or name == "v":  # a row that sees itself alone: the scores have no gradient, only rounding
            assert relative_error(x, y) <= 2 * BOUND[dtype], name


def test_rows_of_fused_qkv_are_read_where_they_are() -> None:
    fused = rows(sum(LENGTHS), 3, HEADS, 16, dtype=torch.float32, seed=7)
    offsets = offsets_of(LENGTHS)
    got, _ = triton_forward.forward(*fused.unbind(1), offsets, 4, SMALL)
    want, _ = window_attention_jagged(*(x.double() for x in fused.unbind(1)), offsets, 4)
    assert relative_error(got, want) <= BOUND[torch.float32]


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a6_a9_a_sample_has_the_same_bits_alone_in_any_batch_and_beside_other_neighbours() -> None:
    q, k, v, offsets = batch(torch.float32)
    begin, end = offsets.tolist()[2:4]
    whole, _ = triton_forward.forward(q, k, v, offsets, 6, SMALL)
    alone, _ = triton_forward.forward(*(x[begin:end] for x in (q, k, v)), offsets_of([end - begin]), 6, SMALL)
    for x in (q, k, v):  # every other sample becomes something else
        x[:begin] = 1e3
        x[end:] = float("nan")
    beside, _ = triton_forward.forward(q, k, v, offsets, 6, SMALL)
    assert torch.equal(whole[begin:end], alone)
    assert torch.equal(whole[begin:end], beside[begin:end])


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_batches_without_rows(lengths: list[int]) -> None:
    q, k, v, offsets = batch(torch.float32, lengths)
    out, sums = triton_forward.forward(q, k, v, offsets, 3, SMALL)
    assert out.shape == (0, HEADS, WIDTH)
    assert [x.shape for x in triton_backward.backward(out, q, k, v, out, sums, offsets, 3, SMALL)] == [q.shape] * 3
    assert window_attention(q, k, v, offsets, 3).shape == q.shape


def test_the_operator_keeps_torchs_rules_and_has_true_gradients() -> None:
    q, k, v, offsets = batch(torch.float64, [4, 0, 2], width=4)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.kunlun.window_attention.default, (*leaves, offsets, 1))
    assert torch.autograd.gradcheck(lambda *x: torch.ops.kunlun.window_attention(*x, offsets, 1)[0], leaves)


def test_backends_agree_through_the_dispatcher() -> None:
    leaves = [x.requires_grad_() for x in batch(torch.float32)[:3]]
    got, want = (window_attention(*leaves, offsets_of(LENGTHS), 6, backend=b) for b in ("triton", "reference"))
    assert relative_error(got, want.detach().double()) <= BOUND[torch.float32]
    d_out = rows(*got.shape, dtype=torch.float32, seed=4)
    for x, y in zip(*(torch.autograd.grad(out, leaves, d_out) for out in (got, want)), strict=True):
        assert relative_error(x, y.double()) <= 2 * BOUND[torch.float32]
    with pytest.raises(ValueError, match=r"backend 'triton': expected float32, float16 or bfloat16, found torch\.float64"):
        window_attention(*batch(torch.float64), 6, backend="triton")


def test_what_does_not_fit_is_named() -> None:
    q, k, v, offsets = batch(torch.float32)
    with pytest.raises(ValueError, match=r"of one shape, found q \(57, 2, 24\), k \(56, 2, 24\)"):
        window_attention(q, k[1:], v, offsets, 3)
    with pytest.raises(ValueError, match=r"one dtype, found torch\.float32, torch\.float16"):
        window_attention(q, k.half(), v, offsets, 3)
    with pytest.raises(
        ValueError, match=r"window_attention: expected offsets as int32 or int64 \[B \+ 1\].*found torch\.float32"
    ):
        window_attention(q, k, v, offsets.float(), 3)
    with pytest.raises(ValueError, match="window of at least 0, found -1"):
        window_attention(q, k, v, offsets, -1)
    with pytest.raises(ValueError, match="the plain form takes float64"):
        triton_forward.forward(q.double(), k.double(), v.double(), offsets, 3)
