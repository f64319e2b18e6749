"""Peak of matrix products of the device that trains, in FLOP/s: what MFU is a share of.

GPUs: dense peaks of NVIDIA's data sheets, by device name (bfloat16 on tensor cores; float32 outside of them, as torch computes
float32 products unless told otherwise). CPUs: the best of a few square products in the precision and with the threads of the
run, a third of a second at the start. `peak_flops` in the training configuration overrides both.
"""

from __future__ import annotations

import time

import torch

from model.training.config import Precision
from model.training.device import Compute

DATASHEET: tuple[tuple[str, float, float], ...] = (
    ("GB200", 2.5e15, 80e12),
    ("B200", 2.25e15, 75e12),
    ("B100", 1.75e15, 60e12),
    ("GH200", 989e12, 67e12),
    ("H200 NVL", 836e12, 60e12),
    ("H200", 989e12, 67e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("H800", 989e12, 67e12),
    ("H20", 148e12, 44e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 30.3e12),
    ("A100", 312e12, 19.5e12),
    ("A800", 312e12, 19.5e12),
    ("A40", 149.7e12, 37.4e12),
    ("A30", 165e12, 10.3e12),
    ("A10G", 70e12, 35e12),
    ("A10", 125e12, 31.2e12),
    ("RTX 6000 Ada", 364e12, 91.1e12),
    ("RTX 4090", 165.2e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)
"""Name, dense bfloat16 and float32 FLOP/s; the first name that a device's name contains counts."""

PROBE_WIDTH, PROBE_S = 768, 0.3


def peak_flops(compute: Compute, override: float | None = None) -> float | None:
    """FLOP/s that MFU is relative to; None for a GPU that is not in the table."""
    if override is not None:
        return override
    if compute.device.type == "cuda":
        return datasheet_peak(compute.name, compute.precision)
    return measured_peak(compute.precision)


def datasheet_peak(name: str, precision: Precision) -> float | None:
    """Of a GPU by its name, None if it is unknown."""
    for known, bf16, f32 in DATASHEET:
        if known.lower() in name.lower():
            return bf16 if precision is Precision.BF16 else f32
    return None


def measured_peak(precision: Precision) -> float:
    """Of this process's CPU threads: the fastest of repeated products of `PROBE_WIDTH`² matrices."""
    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    a, b = (torch.ones(PROBE_WIDTH, PROBE_WIDTH, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    fastest, ends = float("inf"), time.perf_counter() + PROBE_S
    while fastest == float("inf") or time.perf_counter() < ends:  # once at least, however busy the machine
        began = time.perf_counter()
        torch.mm(a, b)
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * PROBE_WIDTH**3 / fastest
