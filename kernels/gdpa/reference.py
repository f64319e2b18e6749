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
    shared_q     q_offsets [0, n]             one query set for all samples (seeds): out [B · n, H, d_h],
                                              sample b writes rows b · n … (b + 1) · n
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations import activate
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.validate import check_jagged


def gdpa_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged) -> Tensor:
    """GDPA over jagged queries; shapes as drawn above, any floating dtype.

    Returns [sum_T, H, d_h] ([B · n, H, d_h] for shared queries) in q's dtype. Raises `ValueError` on
    shapes, types or options that do not fit.
    """
    check_jagged(q, k, v, params, jagged)
    outputs = [q[:0]]
    for queries, keys in sample_rows(jagged, k.shape[0]):
        scores = torch.einsum("thd,nhd->htn", q[queries], k[keys]) * params.scale_in
        hidden = activate(scores, params.activation, head_dim=0)  # [H, T, n_kv]
        if jagged.window is not None:
            hidden = hidden * _band(hidden, jagged.window)
        outputs.append(torch.einsum("htn,nhd->thd", hidden, v[keys]) * params.scale_out)
    return torch.cat(outputs)


def sample_rows(jagged: Jagged, k_rows: int) -> list[tuple[slice, slice]]:
    """(rows of q, rows of K/V) of each sample."""
    samples = jagged.samples(k_rows)
    q_ends = jagged.q_offsets.tolist()
    if jagged.k_offsets is not None:
        k_ends = jagged.k_offsets.tolist()
    else:
        assert jagged.n_kv is not None
        k_ends = list(range(0, k_rows + 1, jagged.n_kv))
    blocks = jagged.kv_index.tolist() if jagged.kv_index is not None else range(samples)
    queries = [slice(0, q_ends[-1])] * samples if jagged.shared_q else [slice(*q_ends[b : b + 2]) for b in range(samples)]
    return [(rows, slice(k_ends[block], k_ends[block + 1])) for rows, block in zip(queries, blocks, strict=True)]


def rms_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """x / rms(x) over the last dimension, without weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _band(hidden: Tensor, window: int) -> Tensor:
    """1 where |i − j| ≤ window, else 0: [T, n_kv] in the dtype of `hidden`."""
    queries, keys = (torch.arange(size, device=hidden.device) for size in hidden.shape[1:])
    return ((queries[:, None] - keys[None, :]).abs() <= window).to(hidden.dtype)
