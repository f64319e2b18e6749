"""One door to the operators: picks the form by the layout of its arguments and by where they live.

Padded rows on a CPU run the dense form that is exported; jagged rows on a CPU the plain form, or become nodes of a graph that
is being exported; on CUDA tensors both run the Triton kernels, as operators of torch (`kunlun::…`) with autograd. Callers say
what they have, never which code runs; `backend` is for comparisons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import Backend, resolved, use_triton
from kernels.gdpa import op as _gdpa
from kernels.gdpa.padded import check_padded, gdpa_padded
from kernels.gdpa.params import GDPAParams, Jagged, padded_layout
from kernels.gdpa.reference import gdpa_jagged
from kernels.gdpa.validate import check_jagged
from kernels.pffn import op as _pffn
from kernels.pffn.padded import pffn_padded
from kernels.pffn.reference import check_pffn, pffn_jagged
from kernels.seed_pooling import op as _seed_pooling
from kernels.seed_pooling.reference import seed_pooling_jagged
from kernels.tensorrt import symbolic
from kernels.window import op as _window
from kernels.window.reference import window_attention_jagged

__all__ = ["GDPAParams", "Jagged", "gdpa", "pffn", "seed_pooling", "window_attention"]


def gdpa(
    q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """Act(s_in · Q Kᵀ) V · s_out over q [sum_T, H, d_h] with a `jagged` layout, or over padded q [B, T, H, d_h].

    Padded k and v are [B, n_kv, H, d_h].
    Returns rows like q's (B times as many for shared queries). Raises `ValueError` on arguments that do not fit.
    """
    if jagged is not None and resolved(backend) == "onnx":
        check_jagged(q, k, v, params, jagged, values=False)
        return symbolic.gdpa(q, k, v, params, jagged)
    if not use_triton(q, backend):
        return gdpa_padded(q, k, v, params) if jagged is None else gdpa_jagged(q, k, v, params, jagged)
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    if jagged is None:
        check_padded(q, k, v, params)
        rows = padded_layout(q, k)
        return gdpa(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), params, rows, backend=backend).view(q.shape)
    check_jagged(q, k, v, params, jagged)
    if resolved(backend) == "aot":
        from kernels.aot import torch_backend

        return torch_backend.gdpa(q, k, v, params, jagged)
    return _gdpa.gdpa(q, k, v, *_gdpa.arguments(params, jagged))


def pffn(
    q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged | None = None, *,
    lengths: Tensor | None = None, normed: Tensor | None = None, eps: float = 1e-5, backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """The PFFN block (LayerNorm → GDPA → + q̂ → RMSNorm → + q); layouts as in `gdpa`.

    `lengths` int [B] of padded rows: rows beyond are zero in q and in the result. The kernels skip them; the dense form
    needs no such hint, since zero rows stay zero. `normed`: LayerNorm(q) [B, T, H · d_h] of padded rows, when it is at hand;
    the dense form then does not make it again (the kernels do, in passing).
    """
    if jagged is not None and resolved(backend) == "onnx":
        check_pffn(q, k, v, params, jagged, values=False)
        return symbolic.pffn(q, k, v, params, jagged, eps)
    if not use_triton(q, backend):
        return pffn_padded(q, k, v, params, eps, normed) if jagged is None else pffn_jagged(q, k, v, params, jagged, eps)
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = q.float(), _autocast(k), _autocast(v)  # normalisations and the residual stream stay f32, products do not
    if jagged is None:
        check_padded(q, k, v, params)
        rows = padded_layout(q, k, lengths)
        packed = (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        return pffn(*packed, params, rows, eps=eps, backend=backend).view(q.shape)
    check_pffn(q, k, v, params, jagged)
    if resolved(backend) == "aot":
        from kernels.aot import torch_backend

        return torch_backend.pffn(q, k, v, params, jagged, eps)
    needs_backward = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    out: Tensor = _pffn.pffn(q, k, v, *_gdpa.arguments(params, jagged), eps, needs_backward)[0]
    return out


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int, *, max_length: int = 0, backend: Backend = "auto"
) -> Tensor:
    """Softmax attention to |i − j| ≤ window of the same sample; q, k, v, result [sum_T, H, d_h], offsets int [B+1].

    `max_length`: no sample has more rows; 0: unknown (it sizes the grid of exported nodes). The padded form that is exported
    for CPU engines is `kernels.window.padded`. Raises `ValueError` on what does not fit.
    """
    if resolved(backend) == "onnx":
        return symbolic.window_attention(q, k, v, offsets, window, max_length)
    if not use_triton(q, backend):
        return window_attention_jagged(q, k, v, offsets, window)[0]
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    if resolved(backend) == "aot":
        from kernels.aot import torch_backend

        return torch_backend.window_attention(q, k, v, offsets, window)
    out: Tensor = _window.window_attention(q, k, v, offsets, window)[0]
    return out


def seed_pooling(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Softmax attention of shared seeds [n_seeds, H, d_h] to each sample's rows k, v [sum_T, H, d_h], offsets int [B+1].

    Returns [B, n_seeds, H, d_h]; a sample without rows pools to 0. Raises `ValueError` on what does not fit.
    """
    if resolved(backend) == "onnx":
        return symbolic.seed_pooling(seeds, k, v, offsets)
    if not use_triton(k, backend):
        return seed_pooling_jagged(seeds, k, v, offsets)[0]
    seeds, k, v = _autocast(seeds), _autocast(k), _autocast(v)
    if resolved(backend) == "aot":
        from kernels.aot import torch_backend

        return torch_backend.seed_pooling(seeds, k, v, offsets)
    out: Tensor = _seed_pooling.seed_pooling(seeds, k, v, offsets)[0]
    return out


def _autocast(x: Tensor) -> Tensor:
    """An operand of products in autocast's dtype where that is on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
