"""Launches the Triton kernels of the PFFN block; see `kernels.gdpa.launch`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gdpa.launch import Layout, backward_kv, choose, constants
from kernels.pffn import triton_backward, triton_forward
from kernels.variants import Blocks


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, activation: tuple[str, ...], scale_in: float, scale_out: float,
    eps: float, statistics: bool = True, blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(out, mean, rstd, rrms) of contiguous q [rows, H, d_h]; the row statistics f32 [rows] are what backward needs,
    of length 0 without `statistics`."""
    b = blocks or choose("pffn", "forward", q, layout)
    make = torch.zeros if layout.q_lengths is not None else torch.empty
    out = make(q.shape, dtype=q.dtype, device=q.device)
    mean, rstd, rrms = make((3, len(q) if statistics else 0), dtype=torch.float32, device=q.device).unbind(0)
    tiles, per_sample, units = layout.units(len(q), b.m)
    if units and q.numel():
        triton_forward.pffn_forward[(units,)](
            q, k, v, out, *((mean, rstd, rrms) if statistics else (None,) * 3),
            tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            scale_in, scale_out, eps, per_sample, KEEP=b.keep, **constants(q, layout, activation, b),
        )  # fmt: skip
    return out, mean, rstd, rrms


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, statistics: tuple[Tensor, Tensor, Tensor], layout: Layout,
    activation: tuple[str, ...], scale_in: float, scale_out: float, blocks: tuple[Blocks, Blocks] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) from q, k, v, out, dout and the row statistics (mean, rstd, rrms)."""
    b = blocks[0] if blocks else choose("pffn", "backward_q", q, layout)
    dq = torch.zeros_like(q) if layout.q_lengths is not None else torch.empty_like(q)
    coupling = torch.empty(len(q), dtype=torch.float32, device=q.device)
    tiles, per_sample, units = layout.units(len(q), b.m)
    if units and q.numel():
        triton_backward.pffn_backward_q[(units,)](
            q, k, v, out, dout, dq, *statistics, coupling,
            tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            scale_in, scale_out, per_sample, **constants(q, layout, activation, b),
        )  # fmt: skip
    chosen = blocks[1] if blocks else choose("pffn", "backward_kv", q, layout)
    dk, dv = backward_kv(q, k, v, dout, layout, activation, scale_in, scale_out, chosen, (out, *statistics, coupling))
    return dq, dk, dv
