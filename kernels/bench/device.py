"""The machine: what it is, what its data sheet promises, and what it was seen to reach in this run.

Peaks are dense bf16 tensor-core TFLOP/s and device-memory TB/s of NVIDIA's data sheets, by the name the driver reports.
The *measured* ceilings are a large matrix product and a large copy (bytes read plus bytes written) in the same process:
kernels are held against both, since a power-limited or shared card never reaches its data sheet.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
import triton

from kernels.bench.timing import measure

DATASHEET: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 8.0),
    ("GH200", 989.0, 4.0),
    ("H200", 989.0, 4.8),
    ("H100 NVL", 835.0, 3.9),
    ("H100 PCIe", 756.0, 2.0),
    ("H100", 989.0, 3.35),
    ("A100-SXM4-80GB", 312.0, 2.039),
    ("A100-SXM4-40GB", 312.0, 1.555),
    ("A100", 312.0, 1.935),
    ("L40S", 362.0, 0.864),
    ("L4", 121.0, 0.3),
    ("A10", 125.0, 0.6),
    ("RTX PRO 6000", 503.8, 1.792),
)
PRODUCT_WIDTH, COPY_BYTES = 8192, 2 << 30


@dataclass(frozen=True)
class Ceilings:
    """bf16 matrix TFLOP/s and memory TB/s; `source` says whose."""

    tflops: float
    tbs: float
    source: str

    def floor_s(self, flops: float, moved: float) -> float:
        """The least seconds that `flops` and `moved` bytes can take: the roofline."""
        return max(flops / (self.tflops * 1e12), moved / (self.tbs * 1e12))


@dataclass(frozen=True)
class Machine:
    """Facts for the report's head. `ceilings`: data sheet (where the name is known), then measured."""

    device: str
    facts: dict[str, str]
    ceilings: tuple[Ceilings, ...]
    l2_bytes: int


def datasheet(name: str) -> Ceilings | None:
    """Peaks of the first entry whose name occurs as whole words in the driver's name: an L40 is no L4."""
    for product, tflops, tbs in DATASHEET:
        if re.search(rf"(?<![\w-]){product}(?![\w])", name):
            return Ceilings(tflops, tbs, "data sheet")
    return None


def describe(device: str) -> Machine:
    """Look at the machine and measure its ceilings (about two seconds on a GPU)."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    if device != "cuda":
        facts |= {"device": f"{platform.processor() or platform.machine()} (Triton's interpreter: times mean nothing)"}
        return Machine(device, facts, (_measured(device, 256, 1 << 20),), 1 << 20)
    properties = torch.cuda.get_device_properties(0)
    facts |= {
        "device": f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB, L2 {properties.L2_cache_size / 2**20:.0f} MiB",
        "cuda (torch)": str(torch.version.cuda),
        "driver": _driver(),
    }
    sheet = datasheet(properties.name)
    ceilings = (*((sheet,) if sheet else ()), _measured(device, PRODUCT_WIDTH, COPY_BYTES))
    return Machine(device, facts, ceilings, properties.L2_cache_size)


def _measured(device: str, width: int, copied: int) -> Ceilings:
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = measure([lambda: a @ b], device)
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = measure([lambda: target.copy_(source)], device)
    return Ceilings(2 * width**3 / product.median_s / 1e12, 2 * copied / copy.median_s / 1e12, "measured")


def _driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    return answer[0] if answer else "unknown"
