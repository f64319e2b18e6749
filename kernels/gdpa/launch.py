"""Launches the Triton kernels of GDPA: work lists, tile sizes, grids. Called by the registered operators (`kernels.ops`).

Everything it derives from lengths is computed on the device; no call here waits for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from kernels import variants
from kernels.gdpa import triton_backward, triton_forward
from kernels.gdpa.tiles import readers, tile_list
from kernels.triton_activations import activation_codes
from kernels.variants import Blocks


@dataclass(frozen=True)
class Layout:
    """Rows of a launch, all int32 on the device of q: `q_offsets` [B+1] ([2] when queries are shared), `q_lengths` [B] for
    rows padded behind, `k_offsets` [blocks+1] for jagged K/V (else `n_kv` rows each), `kv_index` [B]."""

    samples: int
    n_kv: int
    q_offsets: Tensor
    q_lengths: Tensor | None = None
    k_offsets: Tensor | None = None
    kv_index: Tensor | None = None
    window: int = -1
    shared_q: bool = False
    uniform_rows: int = 0  # rows of every sample when they are all alike (padded rows without lengths), else 0

    def blocks(self, k_rows: int) -> int:
        return k_rows // self.n_kv if self.k_offsets is None else len(self.k_offsets) - 1

    def units(self, q_rows: int, unit: int) -> tuple[Tensor | None, int, int]:
        """(work list or None, units per sample, number of units) over Q rows."""
        if self.shared_q or self.uniform_rows:
            per_sample = triton.cdiv(q_rows if self.shared_q else self.uniform_rows, unit)
            return None, per_sample, per_sample * self.samples
        lengths = self.q_lengths if self.q_lengths is not None else self.q_offsets.diff()
        tiles = tile_list(lengths, q_rows, unit)
        return tiles, 1, len(tiles)

    def key_units(self, k_rows: int, unit: int) -> tuple[Tensor | None, int, int]:
        """The same over K/V rows, by block."""
        if self.k_offsets is None:
            per_block = triton.cdiv(self.n_kv, unit)
            return None, per_block, per_block * self.blocks(k_rows)
        tiles = tile_list(self.k_offsets.diff(), k_rows, unit)
        return tiles, 1, len(tiles)


def choose(operator: variants.Operator, direction: variants.Pass, q: Tensor, layout: Layout) -> Blocks:
    """Tile sizes of the table; a work unit of several Q tiles only where K/V stay on chip."""
    chosen = variants.blocks(operator, direction, q.element_size(), q.shape[2], layout.n_kv)
    resident = 0 < layout.n_kv <= chosen.n and layout.window < 0
    return chosen if resident else replace(chosen, unit_tiles=1)


def constants(q: Tensor, layout: Layout, activation: tuple[str, ...], b: Blocks) -> dict[str, int | bool]:
    """Compile-time constants that all kernels share, and launch options."""
    codes, per_head = activation_codes(activation, q.shape[1])
    return {
        "HEADS": q.shape[1], "HEAD_WIDTH": q.shape[2], "N_KV": layout.n_kv, "CODES": codes, "PER_HEAD": per_head,
        "BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_D": variants.padded_width(q.shape[2]),
        "num_warps": b.warps, "num_stages": b.stages,
    }  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, activation: tuple[str, ...], scale_in: float, scale_out: float,
    blocks: Blocks | None = None,
) -> Tensor:  # fmt: skip
    """GDPA of contiguous q [rows, H, d_h], k and v [K/V rows, H, d_h] → [rows (· B when shared), H, d_h]."""
    b = blocks or choose("gdpa", "forward", q, layout)
    rows = len(q) * (layout.samples if layout.shared_q else 1)
    out = (torch.zeros if layout.q_lengths is not None else torch.empty)((rows, *q.shape[1:]), dtype=q.dtype, device=q.device)
    tiles, per_sample, units = layout.units(len(q), b.m * b.unit_tiles)
    if units and out.numel():
        triton_forward.gdpa_forward[(units, q.shape[1])](
            q, k, v, out, tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            scale_in, scale_out, per_sample, layout.window,
            SHARED_Q=layout.shared_q, WINDOWED=layout.window >= 0, UNIT_TILES=b.unit_tiles,
            **constants(q, layout, activation, b),
        )  # fmt: skip
    return out


def backward(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, layout: Layout, activation: tuple[str, ...],
    scale_in: float, scale_out: float, blocks: tuple[Blocks, Blocks] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) of `forward`, in the dtypes of q, k, v."""
    b = blocks[0] if blocks else choose("gdpa", "backward_q", q, layout)
    shared = constants(q, layout, activation, b)
    windowed = layout.window >= 0
    if layout.shared_q:
        groups = min(layout.samples, 64) or 1
        partial = torch.empty((groups, *q.shape), dtype=torch.float32, device=q.device)
        if q.numel():
            triton_backward.shared_q_backward[(triton.cdiv(len(q), b.m), q.shape[1], groups)](
                q, k, v, dout, partial, layout.k_offsets, layout.kv_index,
                scale_in, scale_out, layout.window, len(q), layout.samples, groups, WINDOWED=windowed, **shared,
            )  # fmt: skip
        dq = partial.sum(0).to(q.dtype)
    else:
        dq = torch.zeros_like(q) if layout.q_lengths is not None else torch.empty_like(q)
        tiles, per_sample, units = layout.units(len(q), b.m)
        if units and q.numel():
            triton_backward.gdpa_backward_q[(units, q.shape[1])](
                q, k, v, dout, dq, tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
                scale_in, scale_out, per_sample, layout.window, WINDOWED=windowed, **shared,
            )  # fmt: skip
    chosen = blocks[1] if blocks else choose("gdpa", "backward_kv", q, layout)
    dk, dv = backward_kv(q, k, v, dout, layout, activation, scale_in, scale_out, chosen)
    return dq, dk, dv


def backward_kv(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, layout: Layout, activation: tuple[str, ...],
    scale_in: float, scale_out: float, b: Blocks, norms: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dk, dv); `norms` = (out, mean, rstd, rrms, coupling) when q is raw and dout comes from behind the block's norms."""
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    tiles, per_block, units = layout.key_units(len(k), b.n)
    lists = readers(layout.kv_index, layout.blocks(len(k))) if layout.kv_index is not None else (None, None)
    if units and k.numel():
        triton_backward.gdpa_backward_kv[(units, q.shape[1])](
            q, k, v, dout, dk, dv, *(norms or (None,) * 5), tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets,
            *lists, scale_in, scale_out, per_block, layout.window, len(q),
            SHARED_Q=layout.shared_q, WINDOWED=layout.window >= 0, NORMS=norms is not None,
            **constants(q, layout, activation, b),
        )  # fmt: skip
    return dk, dv
