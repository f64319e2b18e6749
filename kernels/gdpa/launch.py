"""Launches the Triton kernels of GDPA: work lists, tile sizes, grids. Called by the registered operators (`kernels.gdpa.op`).
q, k, v and dout are contiguous, offsets, lengths and indices int32.

Everything it derives from lengths is computed on the device; no call here waits for the GPU.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import triton
from torch import Tensor

from kernels import variants
from kernels.gdpa import triton_backward, triton_forward
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.tiles import readers, tile_list, work_list
from kernels.triton_activations import activation_codes
from kernels.variants import Blocks

PROGRAMS = 1024  # that a launch should have before its work units grow: eight for each multiprocessor of the largest GPUs


def q_units(q: Tensor, k: Tensor, layout: Jagged, unit: int) -> tuple[Tensor | None, int, int]:
    """(work list or None, units per sample, number of units) over Q rows."""
    if layout.shared_q or (layout.uniform_rows and layout.q_lengths is None):
        per_sample = triton.cdiv(len(q) if layout.shared_q else layout.uniform_rows, unit)
        return None, per_sample, per_sample * layout.samples(len(k))
    uneven = layout.k_offsets is not None  # with dense K/V every tile is the same work
    tiles = work_list(layout.q_offsets, layout.q_lengths, len(q), unit, longest_first=uneven)
    return tiles, 1, len(tiles)


def key_units(k: Tensor, layout: Jagged, unit: int) -> tuple[Tensor | None, int, int]:
    """The same over K/V rows, by block."""
    if layout.n_kv is not None:
        per_block = triton.cdiv(layout.n_kv, unit)
        return None, per_block, per_block * layout.blocks(len(k))
    assert layout.k_offsets is not None
    tiles = tile_list(layout.k_offsets, len(k), unit)
    return tiles, 1, len(tiles)


def window_argument(q: Tensor, k: Tensor, layout: Jagged) -> dict[str, int | bool]:
    """The window of a launch, no wider than rows can be apart, so that sums with it fit 32 bits; 0 where there is none."""
    return {"window": min(layout.window or 0, max(len(q), len(k))), "WINDOWED": layout.window is not None}


def choose(operator: variants.Operator, direction: variants.Pass, k: Tensor, layout: Jagged) -> Blocks:
    """Tile sizes of the table; a work unit of several Q tiles only where K/V stay on chip."""
    chosen = variants.blocks(operator, direction, k.element_size(), k.shape[2], layout.n_kv or 0, _shared_kib(k.device))
    resident = 0 < (layout.n_kv or 0) <= chosen.n and layout.window is None
    return chosen if resident else replace(chosen, unit_tiles=1)


@functools.cache
def _shared_kib(device: torch.device) -> int:
    """Shared memory that a program may have on a device; the interpreter has as much as the largest."""
    if device.type != "cuda":
        return variants.HOPPER_SHARED_KIB
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"]) // 1024


def enough_units(b: Blocks, q: Tensor) -> Blocks:
    """Fewer Q tiles per work unit for small batches, so that there are several programs per multiprocessor."""
    tiles = len(q) // b.m * q.shape[1]
    most = max(1, tiles // PROGRAMS)
    return replace(b, unit_tiles=min(b.unit_tiles, 1 << (most.bit_length() - 1)))


def constants(q: Tensor, layout: Jagged, params: GDPAParams, b: Blocks) -> dict[str, int | bool]:
    """Compile-time constants that all kernels share, and launch options."""
    codes, per_head = activation_codes(params.activation, q.shape[1])
    return {
        "HEADS": q.shape[1], "HEAD_WIDTH": q.shape[2], "N_KV": layout.n_kv or 0, "CODES": codes, "PER_HEAD": per_head,
        "BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_D": variants.padded_width(q.shape[2]),
        "num_warps": b.warps, "num_stages": b.stages,
    }  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Jagged, params: GDPAParams,
    blocks: Blocks | None = None,
) -> Tensor:  # fmt: skip
    """GDPA of q [rows, H, d_h], k and v [K/V rows, H, d_h] → [rows (· B when shared), H, d_h]."""
    b = blocks or enough_units(choose("gdpa", "forward", k, layout), q)
    rows = len(q) * (layout.samples(len(k)) if layout.shared_q else 1)
    out = (torch.zeros if layout.q_lengths is not None else torch.empty)((rows, *q.shape[1:]), dtype=q.dtype, device=q.device)
    tiles, per_sample, units = q_units(q, k, layout, b.m * b.unit_tiles)
    if units and out.numel():
        triton_forward.gdpa_forward[(units, q.shape[1])](
            q, k, v, out, tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            params.scale_in, params.scale_out, per_sample,
            SHARED_Q=layout.shared_q, UNIT_TILES=b.unit_tiles,
            **window_argument(q, k, layout), **constants(q, layout, params, b),
        )  # fmt: skip
    return out


def backward(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, layout: Jagged, params: GDPAParams,
    blocks: tuple[Blocks, Blocks] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) of `forward`, in the dtypes of q, k, v; `blocks` for dQ and for dK, dV."""
    for_q, for_kv = blocks or (choose("gdpa", "backward_q", k, layout), choose("gdpa", "backward_kv", k, layout))
    dq = torch.zeros_like(q) if layout.q_lengths is not None else torch.empty_like(q)
    if writes_dq(layout, for_kv):
        dk, dv = backward_kv(q, k, v, dout, layout, params, for_kv, dq=dq)
        return dq, dk, dv
    dk, dv = backward_kv(q, k, v, dout, layout, params, for_kv)
    shared = constants(q, layout, params, for_q)
    if layout.shared_q:
        samples = layout.samples(len(k))
        groups = max(1, min(samples, 64))
        partial = torch.empty((groups, *q.shape), dtype=torch.float32, device=q.device)
        if q.numel():
            triton_backward.shared_q_backward[(triton.cdiv(len(q), for_q.m), q.shape[1], groups)](
                q, k, v, dout, partial, layout.k_offsets, layout.kv_index, params.scale_in, params.scale_out,
                queries=len(q), samples=samples, groups=groups, **window_argument(q, k, layout), **shared,
            )  # fmt: skip
        return partial.sum(0).to(q.dtype), dk, dv
    tiles, per_sample, units = q_units(q, k, layout, for_q.m)
    if units and q.numel():
        triton_backward.gdpa_backward_q[(units, q.shape[1])](
            q, k, v, dout, dq, tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets, layout.kv_index,
            params.scale_in, params.scale_out, per_sample, **window_argument(q, k, layout), **shared,
        )  # fmt: skip
    return dq, dk, dv


def writes_dq(layout: Jagged, b: Blocks) -> bool:
    """Whether the K/V kernel has all that dQ needs: the keys of a block in one tile, and rows that belong to one sample."""
    return 0 < (layout.n_kv or 0) <= b.n and layout.window is None and not layout.shared_q


def backward_kv(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, layout: Jagged, params: GDPAParams, b: Blocks,
    norms: tuple[Tensor, Tensor, Tensor] | None = None, dq: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dk, dv); `norms` = (out, row statistics, coupling) when q is raw and dout comes from behind the block's norms.

    Fills `dq` if given (see `writes_dq`), with norms by the gradient of the normalised q.
    """
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    tiles, per_block, units = key_units(k, layout, b.n)
    lists = readers(layout.kv_index, layout.blocks(len(k))) if layout.kv_index is not None else (None, None)
    statistics = (None,) * 5 if norms is None else (norms[0], *norms[1].unbind(0), norms[2])
    if units and k.numel():
        triton_backward.gdpa_backward_kv[(units, q.shape[1])](
            q, k, v, dout, dq, dk, dv, *statistics, tiles, layout.q_offsets, layout.q_lengths, layout.k_offsets,
            *lists, params.scale_in, params.scale_out, per_block, queries=len(q), **window_argument(q, k, layout),
            SHARED_Q=layout.shared_q, NORMS=norms is not None,
            **constants(q, layout, params, b),
        )  # fmt: skip
    return dk, dv
