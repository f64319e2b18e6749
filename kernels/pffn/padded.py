"""The PFFN block on padded rows: the form that is exported for engines without ragged operators; see `kernels.gdpa.padded`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kernels.gdpa.padded import gdpa_padded
from kernels.gdpa.params import GDPAParams
from kernels.gdpa.reference import rms_norm


def pffn_padded(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, eps: float = 1e-5, normed: Tensor | None = None) -> Tensor:
    """The PFFN block (see `pffn_jagged`) on padded rows; q [B, T, H, d_h] with zero padding rows.

    `normed`: LayerNorm(q) over all heads [B, T, H · d_h], when it is at hand.
    """
    flat = q.flatten(2)  # [B, T, H · d_h]
    normed = F.layer_norm(flat, flat.shape[-1:], eps=eps) if normed is None else normed
    mixed = gdpa_padded(normed.unflatten(-1, q.shape[2:]), k, v, params)
    return (rms_norm(mixed.flatten(2) + normed, eps) + flat).unflatten(-1, q.shape[2:])
