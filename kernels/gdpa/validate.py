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
    for name in ("q_offsets", "q_lengths", "k_offsets", "kv_index"):
        tensor = getattr(jagged, name)
        if tensor is not None and (tensor.dim() != 1 or tensor.dtype not in _INTEGERS or tensor.device != q.device):
            raise ValueError(
                f"gdpa: expected {name} as int32 or int64 [entries] on {q.device}, "
                f"found {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
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
    if values and q.device.type == "cpu":
        _check_values(q, k, jagged, blocks)


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


def _check_values(q: Tensor, k: Tensor, jagged: Jagged, blocks: int) -> None:
    for name, offsets, rows in (("q_offsets", jagged.q_offsets, len(q)), ("k_offsets", jagged.k_offsets, len(k))):
        if offsets is None:
            continue
        if int(offsets[0]) != 0 or int(offsets[-1]) != rows:
            raise ValueError(f"gdpa: {name} run from {int(offsets[0])} to {int(offsets[-1])}, {name[0]} has {rows} rows")
        if bool((offsets.diff() < 0).any()):
            raise ValueError(f"gdpa: {name} decrease, expected non-decreasing row offsets")
    if jagged.q_lengths is not None and bool(((jagged.q_lengths < 0) | (jagged.q_lengths > jagged.q_offsets.diff())).any()):
        raise ValueError("gdpa: q_lengths must lie between 0 and the rows that q_offsets give each sample")
    if jagged.kv_index is not None and len(jagged.kv_index):
        least, most = int(jagged.kv_index.min()), int(jagged.kv_index.max())
        if least < 0 or most >= blocks:
            raise ValueError(f"gdpa: kv_index runs from {least} to {most}, expected indices of {blocks} K/V blocks")
