"""Launches the Triton kernels of the PFFN block; see `kernels.gdpa.launch`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kernels.gdpa.launch import backward_kv, choose, constants, q_units, writes_dq
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.pffn import triton_backward, triton_forward, triton_rows
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
            **constants(q, layout, params, b),
        )  # fmt: skip
    return out, rows


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, rows: Tensor, layout: Jagged,
    params: GDPAParams, blocks: tuple[Blocks, Blocks] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) from q, k, v, out, dout and the row statistics of `forward`; `blocks` for dQ and for dK, dV.

    Where a block's keys are one tile, three kernels: c of every row, then dq̂, dK and dV per (block, head), then LayerNorm's
    backward on whole rows. Else dQ per Q tile with all heads, then dK and dV.
    """
    for_q, for_kv = blocks or (choose("pffn", "backward_q", k, layout), choose("pffn", "backward_kv", k, layout))
    dq = torch.zeros_like(q) if layout.q_lengths is not None else torch.empty_like(q)
    coupling = torch.empty(len(q), dtype=torch.float32, device=q.device)
    mean, rstd, rrms = rows.unbind(0)
    if writes_dq(layout, for_kv) and q.numel():
        width = q.shape[1] * q.shape[2]
        block = triton.next_power_of_2(width)
        whole = {"WIDTH": width, "BLOCK_R": max(1, 4096 // block), "BLOCK_W": block, "num_warps": 4}
        grid = (triton.cdiv(len(q), whole["BLOCK_R"]),)
        triton_rows.row_coupling[grid](q, out, dout, rrms, coupling, len(q), **whole)
        dk, dv = backward_kv(q, k, v, dout, layout, params, for_kv, (out, rows, coupling), dq)
        triton_rows.layer_norm_backward[grid](q, dout, dq, mean, rstd, rrms, len(q), **whole)
        return dq, dk, dv
    tiles, per_sample, units = q_units(q, k, layout, for_q.m)
    if units and q.numel():
        triton_backward.pffn_backward_q[(units,)](
            q, k, v, out, dout, dq, mean, rstd, rrms, coupling,
            tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            params.scale_in, params.scale_out, per_sample, **constants(q, layout, params, for_q),
        )  # fmt: skip
    dk, dv = backward_kv(q, k, v, dout, layout, params, for_kv, (out, rows, coupling))
    return dq, dk, dv
