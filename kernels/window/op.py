"""`kunlun::window_attention`: jagged sliding-window attention as an operator of torch.

CPU tensors run the plain form, CUDA tensors the Triton kernels (`kernels.backend.runs_kernels`). Fake kernels and autograd make
it usable under `torch.compile` and `torch.export`. Importing this module registers the operator; Triton comes when needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import on_device_of, runs_kernels
from kernels.window.reference import check, window_attention_jagged, window_attention_jagged_backward


@torch.library.custom_op("kunlun::window_attention", mutates_args=())
def window_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(outputs [sum_T, H, d_h], log-sum-exp [sum_T, H]); see `kernels.window.reference`. The latter has no gradient."""
    if not runs_kernels(q):
        return window_attention_jagged(q, k, v, offsets, window)
    from kernels.window.triton_forward import forward

    with on_device_of(q):
        return forward(q, k, v, offsets, window)


@window_attention.register_fake
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int) -> tuple[Tensor, Tensor]:
    check(q, k, v, offsets, window, values=False)
    sums = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=sums)


@torch.library.custom_op("kunlun::window_attention_backward", mutates_args=())
def window_attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; see `kernels.window.reference`."""
    if not runs_kernels(q):
        return window_attention_jagged_backward(d_out, q, k, v, out, lse, offsets, window)
    from kernels.window.triton_backward import backward

    with on_device_of(q):
        return backward(d_out, q, k, v, out, lse, offsets, window)


@window_attention_backward.register_fake
def _backward_fake(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, offsets, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, offsets)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, d_out: Tensor, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    q, k, v, out, lse, offsets = ctx.saved_tensors
    return (*window_attention_backward(d_out, q, k, v, out, lse, offsets, ctx.window), None, None)


window_attention.register_autograd(_backward, setup_context=_keep)
