"""GDPA on jagged rows in plain PyTorch: the executable specification every other form is tested against.

    O_h = s_out · Act_h( s_in · Q_h K_hᵀ ) V_h          (Kunlun, arXiv:2602.10016, Fig. 1)

There is no softmax, hence no running maximum and nothing to rescale. In its PFFN use the rows of
K/V are the hidden units of a two-layer network generated per sample, not history tokens.

Jagged layout: tokens of all samples are concatenated on axis 0, heads on axis 1::

    lengths      [3, 0, 2]                    sample 1 has no tokens
    q_offsets    [0, 3, 3, 5]                 B+1 entries, int
    q            [ s0 s0 s0 | | s2 s2 ]       [sum_T, H, d_h]

    K/V dense    n_kv rows per block          [blocks · n_kv, H, d_h]   (the PFFN)
    K/V jagged   k_offsets [0, 4, 4, 9]       [sum of blocks, H, d_h]   (self-attention, seed pooling)

    kv_index     [B]                          which K/V block a sample reads (candidate → user);
                                              several samples may read one block, nothing is copied
    window w     query i sees key j           if |i − j| ≤ w, i and j counted within sample and block
    q_lengths    [B]                          rows that count where a sample's rows are padded behind: the
                                              other rows of out are 0 and get no gradient
    shared_q     q_offsets [0, n]             one query set for all samples (seeds): out [B · n, H, d_h],
                                              sample b writes rows b · n … (b + 1) · n
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations import activate, derivative
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.validate import check_jagged


def gdpa_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged) -> Tensor:
    """GDPA over jagged queries; shapes as drawn above, any floating dtype; f32 queries beside 16-bit k and v are cast.

    Returns [sum_T, H, d_h] ([B · n, H, d_h] for shared queries) in q's dtype. Raises `ValueError` on
    shapes, types or options that do not fit.
    """
    check_jagged(q, k, v, params, jagged)
    outputs, written = [q[:0]], 0
    for queries, keys, first in sample_rows(jagged, q.shape[0], k.shape[0]):
        scores = torch.einsum("thd,nhd->htn", q[queries].to(k.dtype), k[keys]) * params.scale_in
        hidden = activate(scores, params.activation, head_dim=0)  # [H, T, n_kv]
        if jagged.window is not None:
            hidden = hidden * _band(hidden, jagged.window)
        outputs.append(q.new_zeros((first - written, *q.shape[1:])))  # padding rows of the sample before
        outputs.append((torch.einsum("htn,nhd->thd", hidden, v[keys]) * params.scale_out).to(q.dtype))
        written = first + outputs[-1].shape[0]
    outputs.append(q.new_zeros((output_rows(q, k, jagged) - written, *q.shape[1:])))
    return torch.cat(outputs)


def gdpa_jagged_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) in closed form, S recomputed; sums over samples in f32 or better.

    dV = s_out Pᵀ dO;  dS = Act′(S) ⊙ s_out dO Vᵀ;  dQ = s_in dS K;  dK = s_in dSᵀ Q.
    """
    sums = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.zeros_like(x, dtype=sums) for x in (q, k, v))
    for queries, keys, first in sample_rows(jagged, q.shape[0], k.shape[0]):
        rows = dout[first : first + queries.stop - queries.start].to(k.dtype)
        tokens = q[queries].to(k.dtype)
        scores = torch.einsum("thd,nhd->htn", tokens, k[keys]) * params.scale_in
        hidden, slope = activate(scores, params.activation, 0), derivative(scores, params.activation, 0)
        if jagged.window is not None:
            hidden, slope = (x * _band(x, jagged.window) for x in (hidden, slope))
        d_scores = slope * torch.einsum("thd,nhd->htn", rows, v[keys]) * params.scale_out
        dv[keys] += torch.einsum("htn,thd->nhd", hidden, rows) * params.scale_out
        dq[queries] += torch.einsum("htn,nhd->thd", d_scores, k[keys]) * params.scale_in
        dk[keys] += torch.einsum("htn,thd->nhd", d_scores, tokens) * params.scale_in
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def sample_rows(jagged: Jagged, q_rows: int, k_rows: int) -> list[tuple[slice, slice, int]]:
    """(rows of q, rows of K/V, first row of out) of each sample. Reads offsets, so it waits for a GPU."""
    samples = jagged.samples(k_rows)
    if jagged.shared_q:
        queries, first = [slice(0, q_rows)] * samples, [sample * q_rows for sample in range(samples)]
    else:
        first, ends = jagged.q_offsets[:-1].tolist(), jagged.q_offsets[1:].tolist()
        if jagged.q_lengths is not None:
            ends = (jagged.q_offsets[:-1] + jagged.q_lengths).tolist()
        queries = [slice(*rows) for rows in zip(first, ends, strict=True)]
    bounds = jagged.k_offsets.tolist() if jagged.k_offsets is not None else list(range(0, k_rows + 1, jagged.n_kv or 1))
    blocks = jagged.kv_index.tolist() if jagged.kv_index is not None else range(samples)
    keys = [slice(bounds[block], bounds[block + 1]) for block in blocks]
    return list(zip(queries, keys, first, strict=True))


def output_rows(q: Tensor, k: Tensor, jagged: Jagged) -> int:
    """Rows of the output: those of q, or B times as many for shared queries."""
    return q.shape[0] * (jagged.samples(k.shape[0]) if jagged.shared_q else 1)


def rms_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """x / rms(x) over the last dimension, without weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _band(hidden: Tensor, window: int) -> Tensor:
    """1 where |i − j| ≤ window, else 0: [T, n_kv] in the dtype of `hidden`."""
    queries, keys = (torch.arange(size, device=hidden.device) for size in hidden.shape[1:])
    return ((queries[:, None] - keys[None, :]).abs() <= window).to(hidden.dtype)
