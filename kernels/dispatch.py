"""One door to GDPA: picks the form by the layout of its arguments.

Forms: padded (dense rows, what CPU engines and the exported graph run) and jagged (packed rows with
offsets, the reference twin). Callers say what they have, never which code runs.
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


@dataclass(frozen=True)
class Jagged:
    """Layout of packed rows: `q_offsets` int [B+1], `n_kv` rows per K/V block, `kv_index` int [B] block of each sample."""

    q_offsets: Tensor
    n_kv: int
    kv_index: Tensor | None = None


def gdpa(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None) -> Tensor:
    """GDPA over q [sum_T, H, d_h] with a `jagged` layout, or over padded q [B, T, H, d_h] without one."""
    if jagged is None:
        return gdpa_padded(q, k, v, activation=params.activation, scale_in=params.scale_in, scale_out=params.scale_out)
    return gdpa_jagged(
        *(q, k, v, jagged.q_offsets, jagged.n_kv),
        activation=params.activation,
        scale_in=params.scale_in,
        scale_out=params.scale_out,
        kv_index=jagged.kv_index,
    )


def pffn(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None) -> Tensor:
    """The PFFN block; layouts as in `gdpa`."""
    if jagged is None:
        return pffn_padded(q, k, v, activation=params.activation, scale_in=params.scale_in, scale_out=params.scale_out)
    return pffn_jagged(
        *(q, k, v, jagged.q_offsets, jagged.n_kv),
        activation=params.activation,
        scale_in=params.scale_in,
        scale_out=params.scale_out,
        kv_index=jagged.kv_index,
    )
