"""What a GPU's peaks allow a kernel, and how much of it the machine code can reach: arithmetic, no measurement."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.aot.sass import MachineCode
from kernels.aot.targets import Target
from kernels.aot.variant import Work

ACHIEVABLE_BANDWIDTH = 0.92  # of the data sheet's, what a copy reaches on such GPUs


@dataclass(frozen=True)
class Roofline:
    """Ceiling of one kernel on one GPU, in TFLOP/s of useful work: the tensor cores' peak or intensity · bandwidth."""

    intensity: float  # FLOP per byte of device memory
    tflops: float
    bound: str


def roofline(target: Target, work: Work) -> Roofline:
    """Extra products (f32 in three TF32 ones) lower the peak; they are no useful work."""
    peak = target.peak_tflops[work.dtype] / work.products
    intensity = work.flops / work.bytes
    memory = intensity * target.bandwidth_tbs
    return Roofline(intensity, min(peak, memory), "memory" if memory < peak else "compute")


@dataclass(frozen=True)
class Expected:
    """The shares of the roofline between which the machine code should land, and what limits the upper one.

    `overlapped`: tensor cores, special functions, f32 units, instruction issue and device memory all work at once and the
    slowest sets the pace. `serial`: loading, products and activations of a tile take turns, which is what one resident block
    without a pipeline does. Pipeline stages and more resident blocks move a kernel from the second towards the first.
    """

    serial: float
    overlapped: float
    limit: str


def expected(target: Target, work: Work, code: MachineCode, threads: int) -> Expected:
    """Clocks of one multiprocessor per query row of one head, from static instruction counts.

    A tile's code is unrolled, so the count of special functions says how often the text covers a tile; every other count is
    taken relative to it.
    """
    hertz = target.clock_ghz * 1e9 * target.multiprocessors
    per_score = 1 / code.special if code.special else threads / work.tile_scores  # executions per score of one instruction
    arithmetic = {
        "special functions": work.scores * work.special / target.mufu_per_clock,
        "f32 units": work.scores * code.f32_math * per_score / target.fma_per_clock,
        "instruction issue": work.scores * code.instructions * per_score / 128,
    }
    tensor = work.flops * work.products / (target.peak_tflops[work.dtype] * 1e12 / hertz)
    memory = work.bytes / (ACHIEVABLE_BANDWIDTH * target.bandwidth_tbs * 1e12 / hertz)
    clocks = arithmetic | {"tensor cores": tensor, "device memory": memory}
    limit = max(clocks, key=lambda name: clocks[name])
    floor = work.flops / (roofline(target, work).tflops * 1e12 / hertz)
    return Expected(floor / (memory + tensor + max(arithmetic.values())), floor / clocks[limit], limit)
