"""The PFFN block on jagged rows in plain PyTorch: the executable specification of the fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.reference import gdpa_jagged, gdpa_jagged_backward, rms_norm
from kernels.gdpa.validate import check_jagged


def pffn_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged, eps: float = 1e-5) -> Tensor:
    """The PFFN block as deployed: LayerNorm → GDPA → + q̂ → RMSNorm → + q; both norms span all heads.

    Shapes as `gdpa_jagged`; a window or shared queries have no meaning here and raise `ValueError`.
    """
    check_pffn(q, k, v, params, jagged)
    flat = q.flatten(1)  # [sum_T, H · d_h]
    normed = F.layer_norm(flat, flat.shape[-1:], eps=eps)
    inner = gdpa_jagged(normed.view_as(q), k, v, params, jagged).flatten(1) + normed
    return (rms_norm(inner, eps) + flat).view_as(q) * row_mask(q, jagged)


def pffn_jagged_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) in closed form, everything recomputed; the formulas are those of `kernels.pffn.triton_backward`."""
    mask = row_mask(q, jagged)
    flat, d_out = q.flatten(1), (dout * mask).flatten(1)
    centred = flat - flat.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normed = centred * rstd
    inner = gdpa_jagged(normed.view_as(q), k, v, params, jagged).flatten(1) + normed
    rrms = torch.rsqrt(inner.square().mean(-1, keepdim=True) + eps)
    r = inner * rrms
    dx = rrms * (d_out - r * (d_out * r).mean(-1, keepdim=True))
    d_normed, dk, dv = gdpa_jagged_backward(dx.view_as(q), normed.view_as(q), k, v, params, jagged)
    total = d_normed.flatten(1) + dx
    along = (total * normed).mean(-1, keepdim=True)
    dq = rstd * (total - total.mean(-1, keepdim=True) - normed * along) + d_out
    return dq.view_as(q) * mask, dk, dv


def row_mask(q: Tensor, jagged: Jagged) -> Tensor:
    """1 for rows that count, 0 for rows that `q_lengths` says are padding: [sum_T, 1, 1] in q's dtype."""
    if jagged.q_lengths is None:
        return q.new_ones((1, 1, 1))
    row = torch.arange(q.shape[0], device=q.device)
    sample = torch.searchsorted(jagged.q_offsets[1:].contiguous(), row, right=True, out_int32=True)
    inside = row < (jagged.q_offsets[:-1] + jagged.q_lengths)[sample.clamp_max(len(jagged.q_lengths) - 1)]
    return inside.to(q.dtype)[:, None, None]


def check_pffn(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged, values: bool = True) -> None:
    """Raise `ValueError` on what GDPA refuses, on windows and on shared queries."""
    if jagged.window is not None or jagged.shared_q:
        raise ValueError(
            f"pffn: expected every token to see all of its K/V rows, found window = {jagged.window}, "
            f"shared_q = {jagged.shared_q}; use gdpa for seed pooling and self-attention"
        )
    check_jagged(q, k, v, params, jagged, values)
