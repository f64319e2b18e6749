"""What parameterises GDPA besides its tensors: static scales and activations, and the jagged layout."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
