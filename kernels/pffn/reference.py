"""The PFFN block on jagged rows in plain PyTorch: the executable specification of the fused kernel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.reference import gdpa_jagged, rms_norm
from kernels.gdpa.validate import check_jagged


def pffn_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged, eps: float = 1e-5) -> Tensor:
    """The PFFN block as deployed: LayerNorm → GDPA → + q̂ → RMSNorm → + q; both norms span all heads.

    Shapes as `gdpa_jagged`; a window or shared queries have no meaning here and raise `ValueError`.
    """
    check_pffn(q, k, v, params, jagged)
    flat = q.flatten(1)  # [sum_T, H · d_h]
    normed = F.layer_norm(flat, flat.shape[-1:], eps=eps)
    inner = gdpa_jagged(normed.view_as(q), k, v, params, jagged).flatten(1) + normed
    return (rms_norm(inner, eps) + flat).view_as(q)


def check_pffn(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged) -> None:
    """Raise `ValueError` on what GDPA refuses, on windows and on shared queries."""
    if jagged.window is not None or jagged.shared_q:
        raise ValueError(
            f"pffn: expected every token to see all of its K/V rows, found window = {jagged.window}, "
            f"shared_q = {jagged.shared_q}; use gdpa for seed pooling and self-attention"
        )
    check_jagged(q, k, v, params, jagged)
