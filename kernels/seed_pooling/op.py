"""`kunlun::seed_pooling`: jagged seed pooling as an operator of torch.

CPU tensors run the plain form, CUDA tensors the Triton kernels (`kernels.backend.runs_kernels`). Fake kernels and autograd make
it usable under `torch.compile` and `torch.export`. Importing this module registers the operator; Triton comes when needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import on_device_of, runs_kernels
from kernels.seed_pooling.reference import check, seed_pooling_jagged, seed_pooling_jagged_backward


@torch.library.custom_op("kunlun::seed_pooling", mutates_args=())
def seed_pooling(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs [B, n_seeds, H, d_h], log-sum-exp [B, n_seeds, H]); see `kernels.seed_pooling.reference`.

    The latter has no gradient.
    """
    if not runs_kernels(k):
        return seed_pooling_jagged(seeds, k, v, offsets)
    from kernels.seed_pooling.triton_forward import forward

    with on_device_of(k):
        return forward(seeds, k, v, offsets)


@seed_pooling.register_fake
def _forward_fake(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    check(seeds, k, v, offsets, values=False)
    shape = (offsets.shape[0] - 1, *seeds.shape)
    sums = torch.float64 if k.dtype == torch.float64 else torch.float32
    return k.new_empty(shape), k.new_empty(shape[:-1], dtype=sums)


@torch.library.custom_op("kunlun::seed_pooling_backward", mutates_args=())
def seed_pooling_backward(
    d_out: Tensor, seeds: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of seeds, k and v; see `kernels.seed_pooling.reference`."""
    if not runs_kernels(k):
        return seed_pooling_jagged_backward(d_out, seeds, k, v, out, lse, offsets)
    from kernels.seed_pooling.triton_backward import backward

    with on_device_of(k):
        return backward(d_out, seeds, k, v, out, lse, offsets)


@seed_pooling_backward.register_fake
def _backward_fake(
    d_out: Tensor, seeds: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return seeds.new_empty(seeds.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    seeds, k, v, offsets = inputs
    ctx.save_for_backward(seeds, k, v, *output, offsets)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, d_out: Tensor, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    seeds, k, v, out, lse, offsets = ctx.saved_tensors
    return (*seed_pooling_backward(d_out, seeds, k, v, out, lse, offsets), None)


seed_pooling.register_autograd(_backward, setup_context=_keep)
