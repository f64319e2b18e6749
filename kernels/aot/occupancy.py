"""How many blocks of a kernel fit on a multiprocessor, and what a roofline allows: arithmetic on figures that need no GPU.

Rules of allocation (CUDA Occupancy Calculator): registers go to warps in units of 256, warps in fours; shared memory comes
in units of 1 KiB on 9.0 and later and of 128 bytes before, with 1 KiB per block for the system.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.aot.targets import Target
from kernels.aot.variant import Work

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


@dataclass(frozen=True)
class Roofline:
    """Ceiling of one kernel on one GPU. `intensity` in FLOP per byte, `tflops` the lower of compute and memory."""

    intensity: float
    tflops: float
    bound: str
    fraction_of_peak: float


def roofline(target: Target, work: Work) -> Roofline:
    """min(peak, intensity · bandwidth) of the tensor cores and device memory of `target`."""
    peak = target.peak_tflops[work.dtype]
    intensity = work.flops / work.bytes
    memory = intensity * target.bandwidth_tbs
    reached = min(peak, memory)
    return Roofline(intensity, reached, "memory" if memory < peak else "compute", reached / peak)


@dataclass(frozen=True)
class Expected:
    """An upper estimate of the share of the roofline that a kernel reaches, and the unit that limits it.

    Each unit works for so many clocks of a multiprocessor per score; the slowest one sets the pace, all others overlapping
    perfectly: tensor cores, special functions (MUFU), f32 arithmetic, instruction issue, device memory at 92 % of its peak.
    """

    fraction: float
    limit: str


def expected(target: Target, work: Work, per_score: dict[str, float], tensor_slowdown: float = 1.0) -> Expected:
    """`per_score`: instructions per thread and score, keys `special`, `f32_math`, `instructions`.

    `tensor_slowdown`: products issued per product counted (three for f32 in three TF32 products).
    """
    hertz = target.clock_ghz * 1e9
    per_sm_flops = target.peak_tflops[work.dtype] * 1e12 / target.multiprocessors / hertz
    clocks = {
        "tensor cores": work.flops / per_sm_flops * tensor_slowdown,
        "special functions": work.scores * per_score["special"] / target.mufu_per_clock,
        "f32 arithmetic": work.scores * per_score["f32_math"] / 128,
        "instruction issue": work.scores * per_score["instructions"] / 128,
        "device memory": work.bytes / (0.92 * target.bandwidth_tbs * 1e12 / target.multiprocessors / hertz),
    }
    if target.sm in (86, 89, 120):
        clocks["f32 arithmetic"] = work.scores * per_score["f32_math"] / 128
    limit = max(clocks, key=lambda name: clocks[name])
    ceiling = work.flops / (roofline(target, work).tflops * 1e12 / target.multiprocessors / hertz)
    return Expected(ceiling / clocks[limit], limit)
