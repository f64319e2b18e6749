"""What arguments of GDPA must look like; every form calls this, so every form refuses the same calls with the same words.

Offsets are checked as those of every jagged operator (`kernels.offsets`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations import NAMES
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.offsets import check_index, check_offsets


def check_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged, values: bool = True) -> None:
    """Raise `ValueError` unless q, k, v, params and layout fit each other; `values`: read offsets too (on a CPU)."""
    check_heads(q, k, v, 3, "q [sum_T, H, d_h] and k, v [K/V rows, H, d_h]")
    check_activation(params, q.shape[1])
    mixed = q.dtype == torch.float32 and k.element_size() == 2
    if not k.is_floating_point() or v.dtype != k.dtype or not (mixed or q.dtype == k.dtype):
        raise ValueError(
            "gdpa: expected k and v of one floating dtype and q of the same, or q float32 beside 16-bit k and v; "
            f"found q {q.dtype}, k {k.dtype}, v {v.dtype}"
        )
    if not q.device == k.device == v.device:
        raise ValueError(f"gdpa: expected q, k, v on one device, found {q.device}, {k.device}, {v.device}")
    if (jagged.n_kv is None) == (jagged.k_offsets is None):
        raise ValueError(
            f"gdpa: expected either n_kv (dense K/V) or k_offsets (jagged K/V), found n_kv = {jagged.n_kv} "
            f"and k_offsets {'of ' + str(len(jagged.k_offsets)) if jagged.k_offsets is not None else 'absent'}"
        )
    if jagged.n_kv is not None and (jagged.n_kv < 1 or k.shape[0] % jagged.n_kv):
        raise ValueError(f"gdpa: k has {k.shape[0]} rows, expected a multiple of n_kv = {jagged.n_kv}, at least 1")
    if jagged.window is not None and jagged.window < 0:
        raise ValueError(f"gdpa: window is {jagged.window}, expected None (all keys) or a width of at least 0")
    check_offsets("gdpa", "q_offsets", jagged.q_offsets, q, values=values)
    if jagged.k_offsets is not None:
        check_offsets("gdpa", "k_offsets", jagged.k_offsets, k, values=values)
    for name, index in (("q_lengths", jagged.q_lengths), ("kv_index", jagged.kv_index)):
        if index is not None:
            check_index("gdpa", name, index, q.device)
    if jagged.shared_q and (len(jagged.q_offsets) != 2 or jagged.q_lengths is not None):
        raise ValueError(
            f"gdpa: shared queries have q_offsets [0, n] and no q_lengths, found {len(jagged.q_offsets)} offsets"
            f"{'' if jagged.q_lengths is None else ' and q_lengths'}"
        )
    samples, blocks = jagged.samples(k.shape[0]), jagged.blocks(k.shape[0])
    if jagged.kv_index is None and samples != blocks:
        raise ValueError(f"gdpa: {samples} samples but {blocks} K/V blocks; pass kv_index")
    if jagged.kv_index is not None and len(jagged.kv_index) != samples:
        raise ValueError(f"gdpa: kv_index has {len(jagged.kv_index)} entries, expected {samples}")
    if jagged.q_lengths is not None and len(jagged.q_lengths) != samples:
        raise ValueError(f"gdpa: q_lengths has {len(jagged.q_lengths)} entries, expected {samples}")
    if jagged.uniform_rows and not jagged.shared_q and jagged.uniform_rows * samples != q.shape[0]:
        raise ValueError(
            f"gdpa: uniform_rows is {jagged.uniform_rows}, expected 0 or q's {q.shape[0]} rows over {samples} samples"
        )
    if values and q.device.type == "cpu":
        _check_values(jagged, blocks)


def check_heads(q: Tensor, k: Tensor, v: Tensor, dims: int, expected: str) -> None:
    """Raise `ValueError` unless q, k, v have `dims` dimensions, equal heads and widths."""
    if q.dim() != dims or k.dim() != dims or k.shape != v.shape or k.shape[-2:] != q.shape[-2:]:
        raise ValueError(
            f"gdpa: expected {expected} of equal H and d_h, found q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )


def check_activation(params: GDPAParams, heads: int) -> None:
    """Raise `ValueError` unless activations are known names, one or one per head."""
    for name in params.activation:
        if name not in NAMES:
            raise ValueError(f"activation: expected one of {', '.join(NAMES)}, found {name!r}")
    if len(params.activation) not in (1, heads):
        raise ValueError(f"activation: expected 1 or {heads} names (one per head), found {len(params.activation)}")


def _check_values(jagged: Jagged, blocks: int) -> None:
    if jagged.q_lengths is not None and bool(((jagged.q_lengths < 0) | (jagged.q_lengths > jagged.q_offsets.diff())).any()):
        raise ValueError("gdpa: q_lengths must lie between 0 and the rows that q_offsets give each sample")
    if jagged.kv_index is not None and len(jagged.kv_index):
        least, most = int(jagged.kv_index.min()), int(jagged.kv_index.max())
        if least < 0 or most >= blocks:
            raise ValueError(f"gdpa: kv_index runs from {least} to {most}, expected indices of {blocks} K/V blocks")
