"""Launches the Triton kernels of the PFFN block; see `kernels.gdpa.launch`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gdpa.launch import backward_kv, choose, constants, q_units
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.pffn import triton_backward, triton_forward
from kernels.variants import Blocks


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Jagged, params: GDPAParams,
    eps: float = 1e-5, statistics: bool = True, blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, rows) of q [sum_T, H, d_h]; rows f32 [3, sum_T] holds mean, rstd and rrms, what backward needs; [3, 0] without
    `statistics`."""
    b = blocks or choose("pffn", "forward", k, layout)
    make = torch.zeros if layout.q_lengths is not None else torch.empty
    out = make(q.shape, dtype=q.dtype, device=q.device)
    rows = make((3, len(q) if statistics else 0), dtype=torch.float32, device=q.device)
    tiles, per_sample, units = q_units(q, k, layout, b.m)
    if units and q.numel():
        triton_forward.pffn_forward[(units,)](
            q, k, v, out, *(rows.unbind(0) if statistics else (None,) * 3),
            tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            params.scale_in, params.scale_out, eps, per_sample,
            KEEP=b.keep, PREFETCH=b.prefetch, **constants(q, layout, params, b),
        )  # fmt: skip
    return out, rows


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, rows: Tensor, layout: Jagged,
    params: GDPAParams, blocks: tuple[Blocks, Blocks] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) from q, k, v, out, dout and the row statistics of `forward`."""
    b = blocks[0] if blocks else choose("pffn", "backward_q", k, layout)
    dq = torch.zeros_like(q) if layout.q_lengths is not None else torch.empty_like(q)
    coupling = torch.empty(len(q), dtype=torch.float32, device=q.device)
    tiles, per_sample, units = q_units(q, k, layout, b.m)
    if units and q.numel():
        triton_backward.pffn_backward_q[(units,)](
            q, k, v, out, dout, dq, *rows.unbind(0), coupling,
            tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            params.scale_in, params.scale_out, per_sample, PREFETCH=b.prefetch, **constants(q, layout, params, b),
        )  # fmt: skip
    chosen = blocks[1] if blocks else choose("pffn", "backward_kv", k, layout)
    dk, dv = backward_kv(q, k, v, dout, layout, params, chosen, (out, rows, coupling))
    return dq, dk, dv
