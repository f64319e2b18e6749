"""Seed pooling on jagged rows in plain PyTorch: the executable specification of the kernels.

    H_b = softmax(E K_bᵀ / √d_h) V_b          E: queries of the learned seeds, the same for every sample

Jagged layout: rows of all samples are concatenated on axis 0, heads on axis 1. A sample without rows
pools to exactly 0::

    lengths   [3, 0, 2]
    offsets   [0, 3, 3, 5]                  B+1 entries, int
    k, v      [ s0 s0 s0 | | s2 s2 ]        [sum_T, H, d_h]
    seeds     [ e0 e1 ]                     [n_seeds, H, d_h]
    out       [ s0: h0 h1, s1: 0 0, s2: h0 h1 ]        [B, n_seeds, H, d_h]
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kernels.offsets import check_offsets


def seed_pooling_jagged(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled rows of every sample, and the log-sum-exp of every seed's scores (−inf without rows).

    seeds [n_seeds, H, d_h]; k, v [sum_T, H, d_h]; offsets int [B+1]. Returns [B, n_seeds, H, d_h] in k's dtype and
    [B, n_seeds, H] in float32 (float64 for float64). Raises `ValueError` on what does not fit.
    """
    check(seeds, k, v, offsets)
    bounds, scale = offsets.tolist(), seeds.shape[-1] ** -0.5
    sums_dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
    outputs, sums = [seeds.new_zeros(0, *seeds.shape)], [seeds.new_zeros(0, *seeds.shape[:2], dtype=sums_dtype)]
    for begin, end in pairwise(bounds):
        scores = torch.einsum("nhd,thd->hnt", seeds, k[begin:end]) * scale
        outputs.append(torch.einsum("hnt,thd->nhd", scores.softmax(-1), v[begin:end])[None])
        sums.append(torch.logsumexp(scores.to(sums_dtype), -1).T[None])
    return torch.cat(outputs), torch.cat(sums)


def seed_pooling_jagged_backward(
    d_out: Tensor, seeds: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of seeds (summed over samples), k and v for d_out [B, n_seeds, H, d_h]; formulas as for window attention."""
    bounds, scale = offsets.tolist(), seeds.shape[-1] ** -0.5
    d_seeds, dk, dv = torch.zeros_like(seeds, dtype=lse.dtype), torch.empty_like(k), torch.empty_like(v)
    for sample, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        scores = torch.einsum("nhd,thd->hnt", seeds, k[begin:end]) * scale
        weights = (scores - lse[sample].T[:, :, None].to(scores.dtype)).exp()  # [H, n_seeds, T]
        dots = (d_out[sample] * out[sample]).sum(-1).T  # [H, n_seeds]
        d_scores = weights * (torch.einsum("nhd,thd->hnt", d_out[sample], v[begin:end]) - dots[:, :, None]) * scale
        d_seeds += torch.einsum("hnt,thd->nhd", d_scores, k[begin:end])
        dk[begin:end] = torch.einsum("hnt,nhd->thd", d_scores, seeds)
        dv[begin:end] = torch.einsum("hnt,nhd->thd", weights, d_out[sample])
    return d_seeds.to(seeds.dtype), dk, dv


def check(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, values: bool = True) -> None:
    """Raise `ValueError` on what does not fit; `values`: read offsets, too (on a CPU)."""
    if seeds.dim() != 3 or k.dim() != 3 or k.shape != v.shape or k.shape[1:] != seeds.shape[1:]:
        raise ValueError(
            "seed_pooling: expected seeds [n_seeds, H, d_h] and k, v [sum_T, H, d_h] of equal H and d_h, "
            f"found seeds {tuple(seeds.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if not seeds.dtype == k.dtype == v.dtype:
        raise ValueError(f"seed_pooling: expected seeds, k and v of one dtype, found {seeds.dtype}, {k.dtype}, {v.dtype}")
    check_offsets("seed_pooling", "offsets", offsets, k, values=values)
