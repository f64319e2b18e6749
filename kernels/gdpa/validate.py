"""What arguments of GDPA must look like; every form calls this, so every form refuses the same calls with the same words.

Shapes, types and options cost nothing to check. The values of offsets are read only where that does not
wait for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.activations import NAMES
from kernels.gdpa.params import GDPAParams, Jagged

_INTEGERS = (torch.int32, torch.int64)


def check_jagged(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged) -> None:
    """Raise `ValueError` unless q, k, v, params and layout fit each other."""
    check_heads(q, k, v, 3, "q [sum_T, H, d_h] and k, v [K/V rows, H, d_h]")
    check_activation(params, q.shape[1])
    if (jagged.n_kv is None) == (jagged.k_offsets is None):
        raise ValueError(
            f"gdpa: expected either n_kv (dense K/V) or k_offsets (jagged K/V), found n_kv = {jagged.n_kv} "
            f"and k_offsets {'of ' + str(len(jagged.k_offsets)) if jagged.k_offsets is not None else 'absent'}"
        )
    if jagged.n_kv is not None and (jagged.n_kv < 1 or k.shape[0] % jagged.n_kv):
        raise ValueError(f"gdpa: k has {k.shape[0]} rows, expected a multiple of n_kv = {jagged.n_kv}, at least 1")
    if jagged.window is not None and jagged.window < 0:
        raise ValueError(f"gdpa: window is {jagged.window}, expected None (all keys) or a width of at least 0")
    for name, tensor in (("q_offsets", jagged.q_offsets), ("k_offsets", jagged.k_offsets), ("kv_index", jagged.kv_index)):
        if tensor is not None and (tensor.dim() != 1 or tensor.dtype not in _INTEGERS or tensor.device != q.device):
            raise ValueError(
                f"gdpa: expected {name} as int32 or int64 [entries] on {q.device}, "
                f"found {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
    if jagged.shared_q and len(jagged.q_offsets) != 2:
        raise ValueError(f"gdpa: shared queries have q_offsets [0, n], found {len(jagged.q_offsets)} entries")
    samples, blocks = jagged.samples(k.shape[0]), jagged.blocks(k.shape[0])
    if jagged.kv_index is None and samples != blocks:
        raise ValueError(f"gdpa: {samples} samples but {blocks} K/V blocks; pass kv_index")
    if jagged.kv_index is not None and len(jagged.kv_index) != samples:
        raise ValueError(f"gdpa: kv_index has {len(jagged.kv_index)} entries, expected {samples}")
    if q.device.type == "cpu":
        _check_values(q, k, jagged, blocks)


def check_heads(q: Tensor, k: Tensor, v: Tensor, dims: int, expected: str) -> None:
    """Raise `ValueError` unless q, k, v have `dims` dimensions, equal heads and widths, one floating dtype and one device."""
    if q.dim() != dims or k.dim() != dims or k.shape != v.shape or k.shape[-2:] != q.shape[-2:]:
        raise ValueError(
            f"gdpa: expected {expected} of equal H and d_h, found q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(
            "gdpa: expected q, k, v of one floating dtype on one device, "
            f"found {q.dtype} on {q.device}, {k.dtype} on {k.device}, {v.dtype} on {v.device}"
        )


def check_activation(params: GDPAParams, heads: int) -> None:
    """Raise `ValueError` unless activations are known names, one or one per head."""
    for name in params.activation:
        if name not in NAMES:
            raise ValueError(f"activation: expected one of {', '.join(NAMES)}, found {name!r}")
    if len(params.activation) not in (1, heads):
        raise ValueError(f"activation: expected 1 or {heads} names (one per head), found {len(params.activation)}")


def _check_values(q: Tensor, k: Tensor, jagged: Jagged, blocks: int) -> None:
    for name, offsets, rows in (("q_offsets", jagged.q_offsets, len(q)), ("k_offsets", jagged.k_offsets, len(k))):
        if offsets is None:
            continue
        if int(offsets[0]) != 0 or int(offsets[-1]) != rows:
            raise ValueError(f"gdpa: {name} run from {int(offsets[0])} to {int(offsets[-1])}, {name[0]} has {rows} rows")
        if bool((offsets.diff() < 0).any()):
            raise ValueError(f"gdpa: {name} decrease, expected non-decreasing row offsets")
    if jagged.kv_index is not None and len(jagged.kv_index):
        least, most = int(jagged.kv_index.min()), int(jagged.kv_index.max())
        if least < 0 or most >= blocks:
            raise ValueError(f"gdpa: kv_index runs from {least} to {most}, expected indices of {blocks} K/V blocks")
