"""One door to GDPA: picks the form by the layout of its arguments and validates them once.

Forms: `padded` (dense rows, what CPU engines and the exported graph run) and `jagged` (packed rows
with offsets, the reference twin). Callers say what they have, never which code runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.gdpa.padded import gdpa_padded, pffn_padded
from kernels.gdpa.reference import gdpa_jagged, pffn_jagged


@dataclass(frozen=True)
class GDPAParams:
    """Static parameters: activation per head (or one for all), scale inside and outside the activation."""

    activation: tuple[str, ...] = ("fast_gelu",)
    scale_in: float = 1.0
    scale_out: float = 1.0


def gdpa(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, *, q_offsets: Tensor | None = None, n_kv: int = 0) -> Tensor:
    """GDPA; jagged when `q_offsets` is given (q [sum_T, H, d_h]), padded otherwise (q [B, T, H, d_h])."""
    kw = {"activation": params.activation, "scale_in": params.scale_in, "scale_out": params.scale_out}
    if q_offsets is not None:
        return gdpa_jagged(q, k, v, q_offsets, n_kv, **kw)  # type: ignore[arg-type]
    _check_padded(q, k, v)
    return gdpa_padded(q, k, v, **kw)  # type: ignore[arg-type]


def pffn(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, *, q_offsets: Tensor | None = None, n_kv: int = 0) -> Tensor:
    """The PFFN block; layouts as in `gdpa`."""
    kw = {"activation": params.activation, "scale_in": params.scale_in, "scale_out": params.scale_out}
    if q_offsets is not None:
        return pffn_jagged(q, k, v, q_offsets, n_kv, **kw)  # type: ignore[arg-type]
    _check_padded(q, k, v)
    return pffn_padded(q, k, v, **kw)  # type: ignore[arg-type]


def _check_padded(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            "gdpa: expected q [B, T, H, d_h] and k, v [B, n_kv, H, d_h] of equal H and d_h, "
            f"found q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
