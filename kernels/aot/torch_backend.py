"""The launcher library under torch: every operator of the dispatcher on CUDA tensors, for inference.

The backend `"aot"` of the dispatcher. It launches on torch's current stream, so it works inside CUDA graphs; a variant is
loaded at its first call on a device, which therefore must not happen during capture. No gradients: the library holds
forward kernels alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from kernels.aot.library import (
    ACTIVATIONS,
    DTYPES,
    GDPAParams,
    KernelError,
    KernelLibrary,
    SeedPoolingParams,
    Status,
    WindowParams,
)
from kernels.gdpa import params as gdpa_params
from kernels.gdpa.op import arguments, layout
from kernels.gdpa.params import Jagged
from kernels.seed_pooling.reference import check as check_seed_pooling
from kernels.tiles import longest_first, tile_list, work_list
from kernels.window.reference import check as check_window

Result = TypeVar("Result")

_DTYPES = {torch.float32: DTYPES["f32"], torch.float16: DTYPES["f16"], torch.bfloat16: DTYPES["bf16"]}
LIBRARY_VARIABLE = "KUNLUN_KERNELS"  # path of libkunlun_kernels.so


@cache
def library() -> KernelLibrary:
    """The library that `KUNLUN_KERNELS` names, or the one that `python -m kernels.aot build` made here."""
    from kernels.aot.build import LIBRARY

    path = Path(os.environ.get(LIBRARY_VARIABLE) or Path("build/kernels") / LIBRARY)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no launcher library; run `python -m kernels.aot build` or set {LIBRARY_VARIABLE}")
    return KernelLibrary(path.resolve())


def describe(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, params: gdpa_params.GDPAParams, jagged: Jagged, block: bool = False,
    eps: float = 1e-5,
) -> GDPAParams:  # fmt: skip
    """The C struct of a call, without what sizes its grid (`launch` adds that).

    q, out [rows, H, d_h], k, v [blocks · n_kv, H, d_h], contiguous, on one CUDA device; index tensors int32. Raises
    `ValueError` for what the C interface cannot express. The tensors must outlive the launch.
    """
    if len(set(params.activation)) != 1:
        raise ValueError(f"activation: expected one for all heads ahead of time, found {', '.join(params.activation)}")
    if jagged.window is not None or jagged.shared_q:
        raise ValueError("jagged: windows and shared queries are compiled just in time only; use the backend 'triton'")
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out)):
        if not x.is_contiguous() or x.dtype != q.dtype or x.dtype not in _DTYPES:
            raise ValueError(
                f"{name}: expected a contiguous tensor of float32, float16 or bfloat16 like q, found {x.dtype} with strides "
                f"{x.stride()}"
            )
    indices = {name: getattr(jagged, name) for name in ("q_offsets", "q_lengths", "k_offsets", "kv_index")}
    for name, index in indices.items():
        if index is not None and (index.dtype != torch.int32 or not index.is_contiguous()):
            raise ValueError(f"{name}: expected contiguous int32, found {index.dtype}")
    return GDPAParams(
        dtype=_DTYPES[q.dtype],
        activation=ACTIVATIONS.index(params.activation[0]),
        block=int(block),
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        out=out.data_ptr(),
        **{name: index.data_ptr() for name, index in indices.items() if index is not None},
        samples=len(jagged.q_offsets) - 1,
        heads=q.shape[1],
        head_width=q.shape[2],
        n_kv=jagged.n_kv or 0,
        scale_in=params.scale_in,
        scale_out=params.scale_out,
        eps=eps,
    )


def launch(call: GDPAParams, rows: int, jagged: Jagged) -> None:
    """Enqueues on torch's current stream, loading the variant first where this context has not. Raises `KernelError`.

    Rows of every sample alike need no work list; otherwise one is made on the device, longest samples first.
    """
    stream = torch.cuda.current_stream().cuda_stream
    if jagged.uniform_rows and jagged.q_lengths is None:
        call.max_length = jagged.uniform_rows
        _prepared(call, lambda: library().launch(call, stream))
        return
    unit = _prepared(call, lambda: library().unit_rows(call))
    units = work_list(jagged.q_offsets, jagged.q_lengths, rows, unit, longest_first=jagged.k_offsets is not None)
    call.units, call.unit_count = units.data_ptr(), len(units)
    library().launch(call, stream)  # `units` may go: torch reuses its memory on this stream only after the launch


def _prepared(call: GDPAParams | WindowParams | SeedPoolingParams, act: Callable[[], Result]) -> Result:
    """The result of `act`, after loading what it needs where that has not been done."""
    try:
        return act()
    except KernelError as error:
        if error.status is not Status.NOT_PREPARED:
            raise
    library().prepare(call)
    return act()


def gdpa(q: Tensor, k: Tensor, v: Tensor, params: gdpa_params.GDPAParams, jagged: Jagged) -> Tensor:
    """GDPA of jagged rows; shapes as `kernels.gdpa.reference.gdpa_jagged`."""
    return _run(q, k, v, params, jagged, False, 0.0)


def pffn(q: Tensor, k: Tensor, v: Tensor, params: gdpa_params.GDPAParams, jagged: Jagged, eps: float = 1e-5) -> Tensor:
    """The PFFN block of jagged rows; shapes as `kernels.pffn.reference.pffn_jagged`."""
    return _run(q, k, v, params, jagged, True, eps)


def window_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int) -> Tensor:
    """Sliding-window attention of jagged rows; shapes as `kernels.window.reference.window_attention_jagged`."""
    _refuse_gradients(q, k, v)
    q, k, v, offsets = (*(_strided(x) for x in (q, k, v)), offsets.int().contiguous())
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    call = describe_window(q, k, v, out, offsets, window)
    if out.numel():
        with torch.cuda.device(q.device):
            units = tile_list(offsets, len(q), _prepared(call, lambda: library().unit_rows(call)))
            call.units, call.unit_count = units.data_ptr(), len(units)
            library().launch(call, torch.cuda.current_stream().cuda_stream)
    return out


def seed_pooling(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Seed pooling of jagged rows; shapes as `kernels.seed_pooling.reference.seed_pooling_jagged`."""
    _refuse_gradients(seeds, k, v)
    seeds, k, v, offsets = seeds.contiguous(), _strided(k), _strided(v), offsets.int().contiguous()
    out = torch.empty((len(offsets) - 1, *seeds.shape), dtype=k.dtype, device=k.device)
    call = describe_seed_pooling(seeds, k, v, out, offsets)
    if not len(k):
        return out.zero_()  # no sample has rows, and an empty tensor has no address to pass
    if out.numel():
        with torch.cuda.device(k.device):
            order = longest_first(offsets)
            call.order, stream = order.data_ptr(), torch.cuda.current_stream().cuda_stream
            _prepared(call, lambda: library().launch(call, stream))
    return out


def describe_window(q: Tensor, k: Tensor, v: Tensor, out: Tensor, offsets: Tensor, window: int) -> WindowParams:
    """The C struct of a call, without a work list; shapes as `window_attention`, offsets int32. Columns adjoin, rows and heads
    may be strided. The tensors must outlive the launch."""
    check_window(q, k, v, offsets, window)
    return WindowParams(
        dtype=_DTYPES[q.dtype],
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        out=out.data_ptr(),
        offsets=offsets.data_ptr(),
        samples=len(offsets) - 1,
        heads=q.shape[1],
        head_width=q.shape[2],
        window=min(window, len(q)),
        **_strides(q=q, k=k, v=v),
        scale=q.shape[2] ** -0.5,
    )


def describe_seed_pooling(seeds: Tensor, k: Tensor, v: Tensor, out: Tensor, offsets: Tensor) -> SeedPoolingParams:
    """The C struct of a call, without an order of samples; shapes as `seed_pooling`, else as `describe_window`."""
    check_seed_pooling(seeds, k, v, offsets)
    return SeedPoolingParams(
        dtype=_DTYPES[k.dtype],
        seeds=seeds.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        out=out.data_ptr(),
        offsets=offsets.data_ptr(),
        samples=len(offsets) - 1,
        n_seeds=len(seeds),
        heads=seeds.shape[1],
        head_width=seeds.shape[2],
        **_strides(k=k, v=v),
        scale=seeds.shape[2] ** -0.5,
    )


def _strides(**tensors: Tensor) -> dict[str, int]:
    """Strides of rows and heads, by the names of the C structs."""
    return {f"{name}_{of}": x.stride(axis) for name, x in tensors.items() for axis, of in enumerate(("row", "head"))}


def _strided(x: Tensor) -> Tensor:
    """x where it is, if the kernels can read it there: 16 elements at a time; else a copy."""
    fits = x.stride(2) == 1 and all(x.stride(axis) > 0 and x.stride(axis) % 16 == 0 for axis in (0, 1))
    return x if fits and x.data_ptr() % 16 == 0 else x.contiguous()


def _refuse_gradients(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError("backend 'aot': expected tensors without gradients; it holds forward kernels alone, use 'triton'")


def _run(q: Tensor, k: Tensor, v: Tensor, params: gdpa_params.GDPAParams, jagged: Jagged, block: bool, eps: float) -> Tensor:
    _refuse_gradients(q, k, v)
    q, k, v = (x.contiguous() for x in (q, k, v))
    jagged = layout(*arguments(params, jagged)[:8])  # index tensors as int32
    out = (torch.empty_like if jagged.q_lengths is None else torch.zeros_like)(q)
    if not len(k) and not block:
        return out.zero_()  # nobody has keys, and an empty tensor has no address to pass
    if out.numel():
        with torch.cuda.device(q.device):
            launch(describe(q, k, v, out, params, jagged, block, eps), len(q), jagged)
    return out
