"""Occupancy and rooflines against figures worked out by hand."""

from __future__ import annotations

import pytest

from kernels.aot.occupancy import occupancy
from kernels.aot.roofline import ACHIEVABLE_BANDWIDTH, expected, roofline
from kernels.aot.sass import MachineCode
from kernels.aot.targets import BY_SM, target
from kernels.aot.variant import Work


@pytest.mark.parametrize(
    ("sm", "threads", "registers", "shared_kib", "columns", "blocks", "limit"),
    [
        (80, 128, 32, 0, 0, 16, "warps"),
        (80, 32, 32, 0, 0, 32, "blocks"),
        (80, 256, 255, 16, 0, 1, "registers"),  # 8 warps of 8,192 registers: one block of them fills the file
        (90, 128, 168, 0, 0, 3, "registers"),  # 12 warps of 5,376
        (90, 128, 64, 72, 0, 3, "shared memory"),  # 228 / (72 + 1)
        (86, 128, 64, 100, 0, 0, "shared memory"),  # more than a block may have
        (100, 128, 64, 16, 256, 2, "tensor memory"),
    ],
)
def test_resident_blocks(sm: int, threads: int, registers: int, shared_kib: int, columns: int, blocks: int, limit: str) -> None:
    found = occupancy(BY_SM[sm], threads, registers, 1024 * shared_kib, columns)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.warps == blocks * threads // 32
    assert found.fraction == found.warps / BY_SM[sm].warps


def work(n_kv: int, dtype: str = "bf16", products: int = 1) -> Work:
    return Work(dtype, 4.0 * n_kv * 128, 4.0 * 128, products, n_kv, 128 * n_kv, 1)


def test_the_block_of_128_keys_is_bound_by_memory_and_that_of_512_by_products() -> None:
    """n_kv FLOP per byte (arXiv:2602.10016's shape): 128 on H100 is 128 · 3.35 TB/s, 512 is beyond the ridge at 295."""
    assert roofline(BY_SM[90], work(128)).tflops == pytest.approx(428.8)
    assert roofline(BY_SM[90], work(128)).bound == "memory"
    assert roofline(BY_SM[100], work(128)).tflops == pytest.approx(1024)
    assert roofline(BY_SM[90], work(512)).tflops == 989
    assert roofline(BY_SM[90], work(512)).bound == "compute"


def test_three_products_for_one_lower_the_peak() -> None:
    assert roofline(BY_SM[80], work(512, "f32", 3)).tflops == pytest.approx(156 / 3)


def test_the_slowest_unit_sets_what_is_expected() -> None:
    lean = MachineCode(instructions=64, tensor={"HGMMA": 16}, special=64, f32_math=64, spill_accesses=0)
    found = expected(BY_SM[90], work(128), lean, 256)
    assert found.limit == "device memory"
    assert found.overlapped == pytest.approx(ACHIEVABLE_BANDWIDTH)
    heavy = MachineCode(instructions=64 * 100, tensor={"HGMMA": 16}, special=64, f32_math=64, spill_accesses=0)
    slow = expected(BY_SM[90], work(128), heavy, 256)
    assert slow.limit == "instruction issue"
    # 100 instructions per score at 128 per clock, against the 128 · 100 / 128 clocks of a row
    clocks_of_roofline = 65536 / (428.8e12 / 132 / 1.83e9)
    assert slow.overlapped == pytest.approx(clocks_of_roofline / 100)
    assert slow.serial < slow.overlapped


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of 80, 86, 89, 90, 100, 120, found 70"):
        target(70)
