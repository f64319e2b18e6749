"""`kunlun::pffn`, the fused block, as an operator of torch; see `kernels.gdpa.op`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.backend import on_device_of, runs_kernels
from kernels.gdpa.op import OPTIONS, layout
from kernels.gdpa.params import GDPAParams
from kernels.pffn.reference import check_pffn, pffn_jagged, pffn_jagged_backward


@torch.library.custom_op("kunlun::pffn", mutates_args=())
def pffn(
    q: Tensor, k: Tensor, v: Tensor,
    q_offsets: Tensor, q_lengths: Tensor | None, k_offsets: Tensor | None, kv_index: Tensor | None,
    n_kv: int, window: int, shared_q: bool, uniform_rows: int, activation: str, scale_in: float, scale_out: float,
    eps: float, statistics: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, row statistics f32 [3, sum_T]: LayerNorm mean and rstd, RMSNorm rrms) of the block; see `kernels.pffn.reference`.

    The statistics are what the kernels' backward needs: [3, 0] without `statistics`, zeros from the plain form; no gradient.
    """
    jagged = layout(q_offsets, q_lengths, k_offsets, kv_index, n_kv, window, shared_q, uniform_rows)
    params = GDPAParams(tuple(activation.split(",")), scale_in, scale_out)
    if not runs_kernels(q):
        rows = torch.zeros((3, len(q) if statistics else 0), device=q.device)
        return pffn_jagged(q, k, v, params, jagged, eps), rows
    from kernels.pffn import launch

    with on_device_of(q):
        return launch.forward(q.contiguous(), k.contiguous(), v.contiguous(), jagged, params, eps, statistics)


@pffn.register_fake
def _fake(
    q: Tensor, k: Tensor, v: Tensor,
    q_offsets: Tensor, q_lengths: Tensor | None, k_offsets: Tensor | None, kv_index: Tensor | None,
    n_kv: int, window: int, shared_q: bool, uniform_rows: int, activation: str, scale_in: float, scale_out: float,
    eps: float, statistics: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    jagged = layout(q_offsets, q_lengths, k_offsets, kv_index, n_kv, window, shared_q, uniform_rows)
    check_pffn(q, k, v, GDPAParams(tuple(activation.split(","))), jagged, values=False)
    return q.new_empty(q.shape), q.new_empty((3, len(q) if statistics else 0), dtype=torch.float32)


@torch.library.custom_op("kunlun::pffn_backward", mutates_args=())
def pffn_backward(
    dout: Tensor, out: Tensor, rows: Tensor, q: Tensor, k: Tensor, v: Tensor,
    q_offsets: Tensor, q_lengths: Tensor | None, k_offsets: Tensor | None, kv_index: Tensor | None,
    n_kv: int, window: int, shared_q: bool, uniform_rows: int, activation: str, scale_in: float, scale_out: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) of `pffn` from its inputs, its output and the row statistics."""
    jagged = layout(q_offsets, q_lengths, k_offsets, kv_index, n_kv, window, shared_q, uniform_rows)
    params = GDPAParams(tuple(activation.split(",")), scale_in, scale_out)
    if not runs_kernels(q):
        return pffn_jagged_backward(dout, q, k, v, params, jagged, eps)
    from kernels.pffn import launch

    with on_device_of(q):
        return launch.backward(q.contiguous(), k.contiguous(), v.contiguous(), out, dout.contiguous(), rows, jagged, params)


@pffn_backward.register_fake
def _fake_backward(
    dout: Tensor, out: Tensor, rows: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:7])
    ctx.options = inputs[7:-1]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*pffn_backward(dout, *ctx.saved_tensors, *ctx.options), *[None] * (OPTIONS + 2))


pffn.register_autograd(_backward, setup_context=_keep)
