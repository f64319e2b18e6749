"""The GPUs that are compiled for: what limits occupancy on each, and the peaks behind a roofline.

Limits are those of the CUDA C++ Programming Guide ("Compute Capabilities"); peaks are the dense, non-sparse figures of
NVIDIA's data sheets for the named product. Figures of one product stand for its whole compute capability.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One compute capability.

    `peak_tflops` by dtype name; f32 is TF32 on the tensor cores. `bandwidth_tbs` is device memory, in TB/s. `mufu_per_clock`
    and `fma_per_clock` count results of the special-function units and of the f32 units per multiprocessor and clock.
    `tensor_op`: the machine instruction that is the native way to this GPU's tensor cores.
    """

    sm: int
    product: str
    multiprocessors: int
    clock_ghz: float
    warps: int  # resident per multiprocessor
    blocks: int
    shared_bytes: int  # per multiprocessor; one KiB of it is the system's for each block
    block_shared_bytes: int  # largest a block may ask for
    bandwidth_tbs: float
    peak_tflops: dict[str, float]
    tensor_op: str
    registers: int = 65_536
    mufu_per_clock: int = 16
    fma_per_clock: int = 128


_KIB = 1024
TARGETS: tuple[Target, ...] = (
    Target(
        sm=80,
        product="A100",
        multiprocessors=108,
        clock_ghz=1.41,
        warps=64,
        blocks=32,
        shared_bytes=164 * _KIB,
        block_shared_bytes=163 * _KIB,
        bandwidth_tbs=2.039,
        peak_tflops={"f16": 312, "bf16": 312, "f32": 156},
        fma_per_clock=64,
        tensor_op="HMMA",
    ),
    Target(
        sm=86,
        product="A10",
        multiprocessors=72,
        clock_ghz=1.695,
        warps=48,
        blocks=16,
        shared_bytes=100 * _KIB,
        block_shared_bytes=99 * _KIB,
        bandwidth_tbs=0.6,
        peak_tflops={"f16": 125, "bf16": 125, "f32": 62.5},
        tensor_op="HMMA",
    ),
    Target(
        sm=89,
        product="L40S",
        multiprocessors=142,
        clock_ghz=2.52,
        warps=48,
        blocks=24,
        shared_bytes=100 * _KIB,
        block_shared_bytes=99 * _KIB,
        bandwidth_tbs=0.864,
        peak_tflops={"f16": 362, "bf16": 362, "f32": 183},
        tensor_op="HMMA",
    ),
    Target(
        sm=90,
        product="H100",
        multiprocessors=132,
        clock_ghz=1.83,
        warps=64,
        blocks=32,
        shared_bytes=228 * _KIB,
        block_shared_bytes=227 * _KIB,
        bandwidth_tbs=3.35,
        peak_tflops={"f16": 989, "bf16": 989, "f32": 494.5},
        tensor_op="HGMMA",
    ),
    Target(
        sm=100,
        product="B200",
        multiprocessors=148,
        clock_ghz=1.85,
        warps=64,
        blocks=32,
        shared_bytes=228 * _KIB,
        block_shared_bytes=227 * _KIB,
        bandwidth_tbs=8.0,
        peak_tflops={"f16": 2250, "bf16": 2250, "f32": 1125},
        tensor_op="UTCHMMA",
    ),
    Target(
        sm=120,
        product="RTX PRO 6000",
        multiprocessors=188,
        clock_ghz=2.617,
        warps=48,
        blocks=24,
        shared_bytes=100 * _KIB,
        block_shared_bytes=99 * _KIB,
        bandwidth_tbs=1.792,
        peak_tflops={"f16": 503.8, "bf16": 503.8, "f32": 251.9},
        tensor_op="HMMA",
    ),
)
BY_SM = {target.sm: target for target in TARGETS}

# What is shipped as PTX besides the cubins: the driver compiles it for any GPU that no cubin fits. PTX of sm_90a and later
# is bound to its architecture and would not carry over. Version 8.0 is CUDA 12.0, the oldest driver (R525) that also
# loads the cubins of the bundled ptxas 12.8.
PTX_SM = 80
PTX_VERSION = 80
PTX_TILES_SM = 86  # whose tiles: the least shared memory of all, which 12.1 has, too


def target(sm: int) -> Target:
    """The target of a compute capability (80 for sm_80); raises `ValueError` on others than the supported ones."""
    if sm not in BY_SM:
        raise ValueError(f"sm: expected one of {', '.join(map(str, BY_SM))}, found {sm}")
    return BY_SM[sm]
