"""One door to GDPA: picks the form by the layout of its arguments.

Forms: padded (dense rows, what CPU engines and the exported graph run) and jagged (packed rows with
offsets, the reference twin). Callers say what they have, never which code runs. Attention over jagged rows is an
operator of torch (`kunlun::…`): the plain form on a CPU, Triton kernels on a GPU.
"""

from __future__ import annotations

from torch import Tensor

from kernels.gdpa.padded import gdpa_padded
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.reference import gdpa_jagged
from kernels.pffn.padded import pffn_padded
from kernels.pffn.reference import pffn_jagged
from kernels.seed_pooling import op as _seed_pooling
from kernels.window import op as _window

__all__ = ["GDPAParams", "Jagged", "gdpa", "pffn", "seed_pooling", "window_attention"]


def gdpa(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None) -> Tensor:
    """GDPA over q [sum_T, H, d_h] with a `jagged` layout, or over padded q [B, T, H, d_h] without one."""
    return gdpa_padded(q, k, v, params) if jagged is None else gdpa_jagged(q, k, v, params, jagged)


def pffn(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None) -> Tensor:
    """The PFFN block; layouts as in `gdpa`."""
    return pffn_padded(q, k, v, params) if jagged is None else pffn_jagged(q, k, v, params, jagged)


def window_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int) -> Tensor:
    """Softmax attention to |i − j| ≤ window of the same sample; q, k, v, result [sum_T, H, d_h], offsets int [B+1].

    The padded form that is exported for CPU engines is `kernels.window.padded`.
    """
    out: Tensor = _window.window_attention(q, k, v, offsets, window)[0]
    return out


def seed_pooling(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Softmax attention of shared seeds [n_seeds, H, d_h] to each sample's rows k, v [sum_T, H, d_h], offsets int [B+1].

    Returns [B, n_seeds, H, d_h]; a sample without rows pools to 0.
    """
    out: Tensor = _seed_pooling.seed_pooling(seeds, k, v, offsets)[0]
    return out
