"""Index arrays that may be absent, for Triton kernels that are also compiled ahead of time."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_index(pointer, index, default):
    """pointer[index], or `default` without a pointer: None, or NULL in a kernel that was compiled ahead of time."""
    return default if pointer is None else tl.load(pointer + index, mask=pointer.to(tl.int64) != 0, other=default)


@triton.jit
def store_optional(pointer, index, value, mask):
    """Store where there is a pointer, which may be NULL in a kernel that was compiled ahead of time."""
    tl.store(pointer + index, value, mask=mask & (pointer.to(tl.int64) != 0))
