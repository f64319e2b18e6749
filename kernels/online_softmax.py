"""What the softmax attention kernels share: one step of the online softmax, how operands are loaded and multiplied, constants.

Scores are kept in units of log2 (the scale takes log2 e along), so that exponentials are the hardware's exp2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.backend import interpreting
from kernels.tiling import Tiling
from kernels.variants import padded_width

LOG2_E = 1.4426950408889634


def check_device(name: str, x: torch.Tensor) -> None:
    """Raises `ValueError` where the kernel cannot run: no GPU and no interpreter, or a dtype without matrix units."""
    if x.device.type != "cuda" and not interpreting():
        raise ValueError(f"{name}: expected tensors on a CUDA device (or TRITON_INTERPRET=1), found {x.device}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{name}: expected float32, float16 or bfloat16, found {x.dtype}; the plain form takes float64")


def launch_constants(x: torch.Tensor, tiling: Tiling) -> dict[str, int | bool]:
    """Compile-time constants that every kernel over rows x [rows, H, d_h] takes, and launch options."""
    heads, width = x.shape[1:]
    return {
        "H": heads, "D": width, "WIDTH": padded_width(width), "UPCAST": interpreting() and x.dtype == torch.bfloat16,
        "num_warps": tiling.warps, "num_stages": tiling.stages,
    }  # fmt: skip


@triton.jit
def load_rows(base, rows, columns, stride, row_mask, D: tl.constexpr, UPCAST: tl.constexpr):
    """Rows [R, columns] of a matrix with unit column stride; zero where `row_mask` is off or the column is beyond D."""
    tile = tl.load(base + rows[:, None] * stride + columns[None, :], mask=row_mask[:, None] & (columns < D)[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def product(a, b):
    """a · b accumulated in float32; float32 operands as three tf32 products (about 1e-6)."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def online_step(scores, v, acc, top, total):
    """Take in one tile of keys: scores [R, C] in log2 units with −inf where masked, v [C, D].

    acc [R, D], top [R] (running maximum) and total [R] (sum of exponentials below it) → the same, updated. A row
    without any key so far keeps total 0.
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    floor = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - floor[:, None])
    shrink = tl.exp2(top - floor)
    acc = acc * shrink[:, None] + product(weights.to(v.dtype), v)
    return acc, new_top, total * shrink + tl.sum(weights, 1)


@triton.jit
def online_end(acc, top, total):
    """(outputs, log-sum-exp in log2 units); a row without keys gives 0 and −inf."""
    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    return acc / safe[:, None], tl.where(some, top + tl.log2(safe), float("-inf"))
