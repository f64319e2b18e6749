"""Sliding-window attention on jagged rows in plain PyTorch: the executable specification of the kernels.

    o_i = Σ_j softmax_j(q_i · k_j / √d_h) v_j        over j of the same sample with |i − j| ≤ w

Jagged layout: tokens of all samples are concatenated on axis 0, heads on axis 1; a band never leaves
its sample::

    lengths   [4, 0, 2]                     sample 1 has no tokens
    offsets   [0, 4, 4, 6]                  B+1 entries, int
    q, k, v   [ s0 s0 s0 s0 | | s2 s2 ]     [sum_T, H, d_h]

    w = 1     s0  ■ ■ · ·                   rows: queries, columns: keys
              s0  ■ ■ ■ ·
              s0  · ■ ■ ■
              s0  · · ■ ■
              s2          ■ ■
              s2          ■ ■
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kernels.offsets import check_offsets


def window_attention_jagged(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Attention of every row to its neighbours, and each row's log-sum-exp of scores.

    q, k, v [sum_T, H, d_h]; offsets int [B+1]; window ≥ 0, and ≥ T − 1 is full attention. Returns [sum_T, H, d_h] in
    q's dtype and [sum_T, H] in float32 (float64 for float64). Raises `ValueError` on what does not fit.
    """
    check(q, k, v, offsets, window)
    bounds, scale = offsets.tolist(), q.shape[-1] ** -0.5
    outputs, sums = [q[:0]], [_sums_of(q[:0])]
    for begin, end in pairwise(bounds):
        rows = slice(begin, end)
        steps = torch.arange(end - begin, device=q.device)
        near = (steps[:, None] - steps[None, :]).abs() <= window  # [T, T]
        scores = torch.einsum("thd,uhd->htu", q[rows], k[rows]) * scale
        scores = scores.masked_fill(~near, float("-inf"))
        outputs.append(torch.einsum("htu,uhd->thd", scores.softmax(-1), v[rows]))
        sums.append(torch.logsumexp(scores.to(sums[0].dtype), -1).T)
    return torch.cat(outputs), torch.cat(sums)


def window_attention_jagged_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for d_out [sum_T, H, d_h], from the forward's outputs and log-sum-exp.

    P = exp(S − lse), dV = Pᵀ dO, dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ O)), dQ = dS K / √d_h, dK = dSᵀ Q / √d_h.
    """
    bounds, scale = offsets.tolist(), q.shape[-1] ** -0.5
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    for begin, end in pairwise(bounds):
        rows = slice(begin, end)
        steps = torch.arange(end - begin, device=q.device)
        near = (steps[:, None] - steps[None, :]).abs() <= window
        scores = torch.einsum("thd,uhd->htu", q[rows], k[rows]) * scale
        weights = (scores - lse[rows].T[:, :, None].to(q.dtype)).exp().masked_fill(~near, 0.0)  # [H, T, T]
        d_weights = torch.einsum("thd,uhd->htu", d_out[rows], v[rows])
        dots = (d_out[rows] * out[rows]).sum(-1).T  # [H, T]
        d_scores = weights * (d_weights - dots[:, :, None]) * scale
        gradients[0][rows] = torch.einsum("htu,uhd->thd", d_scores, k[rows])
        gradients[1][rows] = torch.einsum("htu,thd->uhd", d_scores, q[rows])
        gradients[2][rows] = torch.einsum("htu,thd->uhd", weights, d_out[rows])
    return gradients[0], gradients[1], gradients[2]


def check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int, values: bool = True) -> None:
    """Raise `ValueError` on what does not fit; `values`: read offsets, too (on a CPU)."""
    if q.dim() != 3 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"window_attention: expected q, k and v [sum_T, H, d_h] of one shape, "
            f"found q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"window_attention: expected q, k and v of one dtype, found {q.dtype}, {k.dtype}, {v.dtype}")
    check_offsets("window_attention", "offsets", offsets, q, values=values)
    if window < 0:
        raise ValueError(f"window_attention: expected a window of at least 0, found {window}")


def _sums_of(q: Tensor) -> Tensor:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.zeros(q.shape[:2], dtype=dtype, device=q.device)
