"""How many blocks of a kernel fit on a multiprocessor: arithmetic on figures that need no GPU.

Rules of allocation (CUDA Occupancy Calculator): registers go to warps in units of 256, warps in fours; shared memory comes
in units of 1 KiB on 9.0 and later and of 128 bytes before, with 1 KiB per block for the system.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.aot.targets import Target

_REGISTER_UNIT, _RESERVED_SHARED, _TENSOR_COLUMNS = 256, 1024, 512


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks and warps of one kernel per multiprocessor, and what limits them."""

    blocks: int
    warps: int
    fraction: float
    limit: str


def occupancy(target: Target, threads: int, registers: int, shared_bytes: int, tensor_columns: int = 0) -> Occupancy:
    """Occupancy of a block of `threads` with dynamic and static `shared_bytes`; 0 blocks when it does not fit at all."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    unit = 1024 if target.sm >= 90 else 128
    shared = -(-(shared_bytes + _RESERVED_SHARED) // unit) * unit
    limits = {
        "warps": target.warps // warps,
        "blocks": target.blocks,
        "registers": target.registers // per_warp // 4 * 4 // warps if registers else target.blocks,
        "shared memory": target.shared_bytes // shared if shared_bytes <= target.block_shared_bytes else 0,
    }
    if tensor_columns:
        limits["tensor memory"] = _TENSOR_COLUMNS // tensor_columns
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / target.warps, limit)
