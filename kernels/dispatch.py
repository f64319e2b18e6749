"""One door to GDPA: picks the form by the layout of its arguments.

Forms: padded (dense rows, what CPU engines and the exported graph run) and jagged (packed rows with
offsets, the reference twin). Callers say what they have, never which code runs.
"""

from __future__ import annotations

from torch import Tensor

from kernels.gdpa.padded import gdpa_padded, pffn_padded
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.reference import gdpa_jagged, pffn_jagged

__all__ = ["GDPAParams", "Jagged", "gdpa", "pffn"]


def gdpa(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None) -> Tensor:
    """GDPA over q [sum_T, H, d_h] with a `jagged` layout, or over padded q [B, T, H, d_h] without one."""
    return gdpa_padded(q, k, v, params) if jagged is None else gdpa_jagged(q, k, v, params, jagged)


def pffn(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None) -> Tensor:
    """The PFFN block; layouts as in `gdpa`."""
    return pffn_padded(q, k, v, params) if jagged is None else pffn_jagged(q, k, v, params, jagged)
