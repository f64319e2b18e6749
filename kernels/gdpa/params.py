"""What parameterises GDPA besides its tensors: static scales and activations, and the jagged layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GDPAParams:
    """Static parameters: activation per head (or one for all), scale inside and outside the activation."""

    activation: tuple[str, ...] = ("fast_gelu",)
    scale_in: float = 1.0
    scale_out: float = 1.0


@dataclass(frozen=True)
class Jagged:
    """Layout of packed rows (drawn in `kernels.gdpa.reference`).

    `q_offsets` int [B+1]: rows of each sample in q; with `shared_q` one query set for all, int [2].
    `n_kv`: rows per dense K/V block, or `k_offsets` int [blocks+1]: rows of each jagged block; exactly one of them.
    `kv_index` int [B]: which block a sample reads (candidate → user); None: sample i reads block i.
    `window`: a query sees keys with |i − j| ≤ window; None: all keys of its block.
    `q_lengths` int [B]: rows that count, where those of `q_offsets` are padded behind; the rest gives zeros.
    `uniform_rows`: rows of every sample where all are alike, so that no work list is needed; 0: they differ.
    `max_length`: no sample has more rows; 0: unknown. It sizes the grid of exported nodes.
    """

    q_offsets: Tensor
    n_kv: int | None = None
    kv_index: Tensor | None = None
    k_offsets: Tensor | None = None
    window: int | None = None
    shared_q: bool = False
    q_lengths: Tensor | None = None
    uniform_rows: int = 0
    max_length: int = 0

    def samples(self, k_rows: int) -> int:
        """B, the number of samples; `k_rows` rows of K tell it for shared queries with dense blocks."""
        if not self.shared_q:
            return self.q_offsets.shape[0] - 1  # not `len`: that is one number while a graph is traced
        return self.kv_index.shape[0] if self.kv_index is not None else self.blocks(k_rows)

    def blocks(self, k_rows: int) -> int:
        """Number of K/V blocks."""
        if self.k_offsets is not None:
            return self.k_offsets.shape[0] - 1
        return k_rows // self.n_kv if self.n_kv else 0


def padded_layout(q: Tensor, k: Tensor, lengths: Tensor | None = None) -> Jagged:
    """Layout of padded q [B, T, H, d_h] and k [B, n_kv, H, d_h] as flat rows; `lengths` int [B]: rows that count."""
    samples, rows = q.shape[:2]
    offsets = torch.arange(samples + 1, dtype=torch.int32, device=q.device) * rows
    return Jagged(offsets, k.shape[1], q_lengths=lengths, uniform_rows=rows)
