"""Where Triton kernels can run."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def runs_kernels(x: Tensor) -> bool:
    """Whether operators on `x` run Triton kernels: float32, float16 and bfloat16 on a CUDA device, and on a CPU in a process
    started with `TRITON_INTERPRET=1`. Everything else, float64 included, runs the plain form."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return x.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
