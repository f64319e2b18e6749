"""GDPA on jagged rows in plain PyTorch: the executable specification every other form is tested against.

    O_h = s_out · Act_h( s_in · Q_h K_hᵀ ) V_h          (Kunlun, arXiv:2602.10016, Fig. 1)

There is no softmax, hence no running maximum and nothing to rescale. In its PFFN use the rows of
K/V are the hidden units of a two-layer network generated per sample, not history tokens.

Jagged layout: tokens of all samples are concatenated on axis 0, heads on axis 1::

    lengths      [3, 0, 2]                    sample 1 has no tokens
    q_offsets    [0, 3, 3, 5]                 B+1 entries, int
    q            [ s0 s0 s0 | | s2 s2 ]       [sum_T, H, d_h]
    k, v         n_kv rows per sample         [B · n_kv, H, d_h]   (dense K/V, the PFFN use)
    kv_index     [B]                          which K/V block a sample reads (candidate → user);
                                              several samples may read one block, nothing is copied
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations import activate
from kernels.gdpa.params import GDPAParams, Jagged


def gdpa_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged) -> Tensor:
    """GDPA over jagged queries and dense per-sample keys and values.

    q [sum_T, H, d_h]; k, v [blocks · n_kv, H, d_h]; `jagged.kv_index` None is the identity. Returns
    [sum_T, H, d_h] in q's dtype. Raises `ValueError` on shapes that do not fit.
    """
    _check(q, k, v, jagged)
    blocks_k = k.unflatten(0, (-1, jagged.n_kv))  # [blocks, n_kv, H, d_h]
    blocks_v = v.unflatten(0, (-1, jagged.n_kv))
    offsets = jagged.q_offsets.tolist()
    blocks = jagged.kv_index.tolist() if jagged.kv_index is not None else range(len(offsets) - 1)
    outputs = [q[:0]]
    for sample, block in enumerate(blocks):
        rows = q[offsets[sample] : offsets[sample + 1]]  # [T, H, d_h]
        scores = torch.einsum("thd,nhd->htn", rows, blocks_k[block]) * params.scale_in
        hidden = activate(scores, params.activation, head_dim=0)  # [H, T, n_kv]
        outputs.append(torch.einsum("htn,nhd->thd", hidden, blocks_v[block]) * params.scale_out)
    return torch.cat(outputs)


def pffn_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged, eps: float = 1e-5) -> Tensor:
    """The PFFN block as deployed: LayerNorm → GDPA → + q̂ → RMSNorm → + q; both norms span all heads.

    Shapes as `gdpa_jagged`.
    """
    flat = q.flatten(1)  # [sum_T, H · d_h]
    normed = torch.nn.functional.layer_norm(flat, flat.shape[-1:], eps=eps)
    inner = gdpa_jagged(normed.view_as(q), k, v, params, jagged).flatten(1) + normed
    return (rms_norm(inner, eps) + flat).view_as(q)


def rms_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """x / rms(x) over the last dimension, without weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _check(q: Tensor, k: Tensor, v: Tensor, jagged: Jagged) -> None:
    q_offsets, n_kv, kv_index = jagged.q_offsets, jagged.n_kv, jagged.kv_index
    if q.dim() != 3 or k.shape != v.shape or k.shape[1:] != q.shape[1:]:
        raise ValueError(
            "gdpa: expected q [sum_T, H, d_h] and k, v [blocks · n_kv, H, d_h] of equal H and d_h, "
            f"found q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if k.shape[0] % n_kv:
        raise ValueError(f"gdpa: k has {k.shape[0]} rows, expected a multiple of n_kv = {n_kv}")
    if int(q_offsets[-1]) != q.shape[0]:
        raise ValueError(f"gdpa: q_offsets end at {int(q_offsets[-1])}, q has {q.shape[0]} rows")
    samples, blocks = len(q_offsets) - 1, k.shape[0] // n_kv
    if kv_index is None and samples != blocks:
        raise ValueError(f"gdpa: {samples} samples but {blocks} K/V blocks; pass kv_index")
    if kv_index is not None and len(kv_index) != samples:
        raise ValueError(f"gdpa: kv_index has {len(kv_index)} entries, expected {samples}")
