"""`kunlun::gdpa` as an operator of torch: Triton kernels on CUDA tensors, the plain form on a CPU.

Fake kernels and autograd make it usable under `torch.compile` and `torch.export`. Layout and parameters travel as plain
arguments (`arguments` makes them); offsets, lengths and indices are int32. Triton is imported at the first call that runs it:
CUDA tensors, or CPU tensors in a process that asked for Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.backend import on_device_of, runs_kernels
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.reference import gdpa_jagged, gdpa_jagged_backward, output_rows
from kernels.gdpa.validate import check_jagged


def arguments(params: GDPAParams, jagged: Jagged) -> tuple[Any, ...]:
    """Parameters and layout as the operators take them, after q, k and v."""
    tensors = (jagged.q_offsets, jagged.q_lengths, jagged.k_offsets, jagged.kv_index)
    window = -1 if jagged.window is None else jagged.window
    options = (jagged.n_kv or 0, window, jagged.shared_q, jagged.uniform_rows)
    integers = (None if tensor is None else tensor.int().contiguous() for tensor in tensors)
    return (*integers, *options, ",".join(params.activation), params.scale_in, params.scale_out)


def layout(
    q_offsets: Tensor, q_lengths: Tensor | None, k_offsets: Tensor | None, kv_index: Tensor | None,
    n_kv: int, window: int, shared_q: bool, uniform_rows: int,
) -> Jagged:  # fmt: skip
    """The inverse of `arguments`."""
    return Jagged(
        q_offsets, n_kv or None, kv_index, k_offsets, None if window < 0 else window, shared_q, q_lengths, uniform_rows
    )


@torch.library.custom_op("kunlun::gdpa", mutates_args=())
def gdpa(
    q: Tensor, k: Tensor, v: Tensor,
    q_offsets: Tensor, q_lengths: Tensor | None, k_offsets: Tensor | None, kv_index: Tensor | None,
    n_kv: int, window: int, shared_q: bool, uniform_rows: int, activation: str, scale_in: float, scale_out: float,
) -> Tensor:  # fmt: skip
    """Act(s_in · Q Kᵀ) V · s_out over jagged rows; see `kernels.gdpa.reference`."""
    jagged = layout(q_offsets, q_lengths, k_offsets, kv_index, n_kv, window, shared_q, uniform_rows)
    params = GDPAParams(tuple(activation.split(",")), scale_in, scale_out)
    if not runs_kernels(q):
        return gdpa_jagged(q, k, v, params, jagged)
    from kernels.gdpa import launch

    with on_device_of(q):
        return launch.forward(q.contiguous(), k.contiguous(), v.contiguous(), jagged, params)


@gdpa.register_fake
def _fake(
    q: Tensor, k: Tensor, v: Tensor,
    q_offsets: Tensor, q_lengths: Tensor | None, k_offsets: Tensor | None, kv_index: Tensor | None,
    n_kv: int, window: int, shared_q: bool, uniform_rows: int, activation: str, scale_in: float, scale_out: float,
) -> Tensor:  # fmt: skip
    jagged = layout(q_offsets, q_lengths, k_offsets, kv_index, n_kv, window, shared_q, uniform_rows)
    check_jagged(q, k, v, GDPAParams(tuple(activation.split(","))), jagged, values=False)
    return q.new_empty((output_rows(q, k, jagged), *q.shape[1:]))


@torch.library.custom_op("kunlun::gdpa_backward", mutates_args=())
def gdpa_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor,
    q_offsets: Tensor, q_lengths: Tensor | None, k_offsets: Tensor | None, kv_index: Tensor | None,
    n_kv: int, window: int, shared_q: bool, uniform_rows: int, activation: str, scale_in: float, scale_out: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) of `gdpa`."""
    jagged = layout(q_offsets, q_lengths, k_offsets, kv_index, n_kv, window, shared_q, uniform_rows)
    params = GDPAParams(tuple(activation.split(",")), scale_in, scale_out)
    if not runs_kernels(q):
        return gdpa_jagged_backward(dout, q, k, v, params, jagged)
    from kernels.gdpa import launch

    with on_device_of(q):
        return launch.backward(q.contiguous(), k.contiguous(), v.contiguous(), dout.contiguous(), jagged, params)


@gdpa_backward.register_fake
def _fake_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


OPTIONS = 11  # arguments after q, k, v: layout, activation, scales; none of them has a gradient


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return (*gdpa_backward(dout, *ctx.saved_tensors, *ctx.options), *[None] * OPTIONS)


gdpa.register_autograd(_backward, setup_context=_keep)
