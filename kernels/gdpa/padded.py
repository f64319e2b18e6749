"""GDPA on padded rows: the form that is exported for engines without ragged operators.

Padding rows of q must be zero. They then stay zero all the way (LayerNorm(0) = 0, Act(0) = 0,
RMSNorm(0) = 0), so no mask is needed in the forward; in the backward they get no gradient because
the token stage masks them (Act′(0) ≠ 0 would otherwise leak into K).
"""

from __future__ import annotations

from torch import Tensor

from kernels.activations import activate
from kernels.gdpa.params import GDPAParams
from kernels.gdpa.validate import check_activation, check_heads


def gdpa_padded(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams) -> Tensor:
    """q [B, T, H, d_h], k and v [B, n_kv, H, d_h] → [B, T, H, d_h]; raises `ValueError` on other shapes."""
    check_padded(q, k, v, params)
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, ·, d_h]
    scores = queries @ (keys * params.scale_in).transpose(-1, -2)  # [B, H, T, n_kv]
    hidden = activate(scores, params.activation, head_dim=1)
    return (hidden @ (values * params.scale_out)).transpose(1, 2)


def check_padded(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams) -> None:
    """Raise `ValueError` unless q, k, v and params fit each other."""
    check_heads(q, k, v, 4, "q [B, T, H, d_h] and k, v [B, n_kv, H, d_h]")
    check_activation(params, q.shape[2])
