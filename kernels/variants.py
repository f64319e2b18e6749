"""What is shipped: which (dtype, head width, K/V class, heads) get a kernel compiled ahead of time, and each one's tile sizes.

Just-in-time compilation serves every option; ahead of time only this list is built. No torch and no Triton
here, so that builders and servers can read it. Tile sizes come from sweeps on an H100 (docs/kernels.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Operator = Literal["gdpa", "pffn"]
Dtype = Literal["f16", "bf16", "f32"]
Pass = Literal["forward", "backward_q", "backward_kv"]

ACTIVATION = "fast_gelu"  # of every shipped variant: the presets' and the published benchmarks'
LONG = 0  # n_kv class of a loop over K/V tiles: jagged K/V or more rows than the largest class
HOPPER_SHARED_KIB = 227  # per program, on Hopper and data centre Blackwell


@dataclass(frozen=True)
class Blocks:
    """Tile sizes of one kernel: Q rows, K/V rows, warps, pipeline stages, Q tiles per work unit at most."""

    m: int
    n: int
    warps: int
    stages: int
    unit_tiles: int = 1


@dataclass(frozen=True)
class Variant:
    """One shipped kernel. `n_kv` is the exact number of K/V rows, LONG a loop of any length."""

    operator: Operator
    dtype: Dtype
    head_width: int
    heads: int
    n_kv: int

    @property
    def name(self) -> str:
        return f"{self.operator}_{self.dtype}_h{self.heads}x{self.head_width}_kv{self.n_kv or 'long'}"


# Heads, head width, dtypes, n_kv by operator: what the presets and the published benchmarks use.
_SHIPPED: tuple[tuple[int, int, tuple[Dtype, ...], dict[Operator, tuple[int, ...]]], ...] = (
    (2, 16, ("f32",), {"gdpa": (8,), "pffn": (8,)}),  # tiny
    (2, 64, ("bf16", "f16", "f32"), {"gdpa": (64, LONG), "pffn": (64,)}),  # small
    (3, 128, ("bf16", "f16"), {"gdpa": (128, 256), "pffn": (128, 256)}),  # the benchmarks' reference size
    (4, 128, ("bf16",), {"gdpa": (128, 256, LONG), "pffn": (128,)}),  # the grids that Meta published
)


def shipped() -> tuple[Variant, ...]:
    """The shipped variants of GDPA and the block; everything else is compiled just in time."""
    return tuple(
        Variant(operator, dtype, width, heads, n_kv)
        for heads, width, dtypes, keys in _SHIPPED
        for operator in keys
        for dtype in dtypes
        for n_kv in keys[operator]
    )


def padded_width(head_width: int) -> int:
    """Head width rounded up to what a tile needs: a power of two, at least 16."""
    return max(16, 1 << (head_width - 1).bit_length())


def blocks(
    operator: Operator, direction: Pass, element_bytes: int, head_width: int, n_kv: int, shared_kib: int = HOPPER_SHARED_KIB
) -> Blocks:
    """Tile sizes of a kernel. n_kv 0: jagged. Short K/V fit one tile: then they stay on chip for a unit's Q tiles.

    `shared_kib`: shared memory that a program may have. Below Hopper's the tiles are those that fit 99 KiB without spilling
    to speak of (checked by compiling for compute capability 8.6), not tuned ones.
    """
    wide = padded_width(head_width) > 64
    if element_bytes > 2:  # three TF32 products per product: smaller tiles
        return Blocks(32, _kv_tile(n_kv, 32), 4, 1) if wide else Blocks(64, _kv_tile(n_kv, 64), 4, 1)
    if shared_kib < HOPPER_SHARED_KIB:
        return Blocks(32 if (operator, direction) == ("pffn", "backward_kv") else 64, _kv_tile(n_kv, 64), 8, 1)
    kv_class = next((size for size in (128, 256) if 0 < n_kv <= size), LONG)
    chosen = _BLOCKS.get((operator, direction, wide, kv_class), _BLOCKS[operator, direction, wide, LONG])
    return replace(chosen, n=_kv_tile(n_kv, chosen.n))


def _kv_tile(n_kv: int, largest: int) -> int:
    """K/V rows per tile: the whole block where it fits."""
    return largest if n_kv <= 0 else min(largest, padded_width(n_kv))


# (operator, pass, head width above 64, n_kv class: up to 128, up to 256, LONG) → tile sizes for 16-bit elements. Without an
# entry of its own a class takes that of LONG.
_BLOCKS: dict[tuple[str, str, bool, int], Blocks] = {
    ("gdpa", "forward", False, 128): Blocks(128, 128, 4, 3, unit_tiles=4),
    ("gdpa", "forward", False, LONG): Blocks(128, 128, 4, 3),
    ("gdpa", "forward", True, 128): Blocks(128, 128, 8, 3, unit_tiles=16),
    ("gdpa", "forward", True, 256): Blocks(128, 256, 8, 2, unit_tiles=16),
    ("gdpa", "forward", True, LONG): Blocks(128, 64, 8, 3),
    ("gdpa", "backward_q", False, LONG): Blocks(128, 64, 4, 3),
    ("gdpa", "backward_q", True, 256): Blocks(64, 64, 4, 2),
    ("gdpa", "backward_q", True, LONG): Blocks(128, 64, 8, 3),
    ("gdpa", "backward_kv", False, LONG): Blocks(64, 128, 4, 3),
    ("gdpa", "backward_kv", True, LONG): Blocks(64, 128, 8, 3),
    ("pffn", "forward", False, LONG): Blocks(128, 128, 4, 2),
    ("pffn", "forward", True, LONG): Blocks(128, 128, 8, 2),
    ("pffn", "backward_q", False, LONG): Blocks(64, 128, 4, 2),
    ("pffn", "backward_q", True, LONG): Blocks(32, 64, 4, 2),
    ("pffn", "backward_kv", False, LONG): Blocks(64, 128, 4, 2),
    ("pffn", "backward_kv", False, 128): Blocks(32, 128, 4, 3),
    ("pffn", "backward_kv", True, 128): Blocks(32, 128, 8, 3),
    ("pffn", "backward_kv", True, LONG): Blocks(64, 128, 8, 3),
}
