"""Which code runs an operator: the plain form, the Triton kernels, or none while a graph is exported. Imports no Triton."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "aot", "reference", "onnx"]
"""`onnx`: calls on jagged rows become nodes of the graph that is being exported (`kernels.tensorrt.symbolic`)."""


_preferred: Backend = "auto"


@contextmanager
def preferred(backend: Backend) -> Iterator[None]:
    """Within it, calls that leave the backend to `auto` run on this one: for comparisons of whole models (one thread)."""
    global _preferred
    before, _preferred = _preferred, backend
    try:
        yield
    finally:
        _preferred = before


def interpreting() -> bool:
    """Whether this process asked for Triton's interpreter (`TRITON_INTERPRET=1`), which runs the kernels on CPU tensors."""
    triton = sys.modules.get("triton")
    return os.environ.get("TRITON_INTERPRET") == "1" if triton is None else bool(triton.knobs.runtime.interpret)


def runs_kernels(x: Tensor) -> bool:
    """Whether an operator of torch runs its Triton kernels on x rather than its plain form; the kernels have no float64."""
    return x.element_size() <= 4 and (x.is_cuda or interpreting())


def resolved(backend: Backend) -> Backend:
    """The backend to use: what `preferred` says in place of `auto`."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend: expected one of {', '.join(get_args(Backend))}, found {backend!r}")
    return _preferred if backend == "auto" else backend


def use_triton(x: Tensor, backend: Backend) -> bool:
    """Whether the kernels run on x: on CUDA tensors unless told otherwise. `triton` (compiled just in time) and `aot` (ahead
    of time) insist: `ValueError` where they cannot."""
    backend = resolved(backend)
    if backend == "onnx":
        return False
    if backend == "reference" or x.element_size() > 4:  # the kernels have no float64; the plain forms do
        if backend in ("triton", "aot"):
            raise ValueError(f"backend '{backend}': expected float32, float16 or bfloat16, found {x.dtype}; use 'reference'")
        return False
    if backend == "auto":
        return x.is_cuda and importlib.util.find_spec("triton") is not None
    if backend == "aot" and not x.is_cuda:
        raise ValueError(f"backend 'aot': expected CUDA tensors, found {x.device}")
    if not x.is_cuda and not interpreting():
        raise ValueError(f"backend 'triton': expected CUDA tensors (or TRITON_INTERPRET=1), found {x.device}")
    return True


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the GPU that x is on the current one: Triton launches there, wherever the arguments are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
