"""Where a run computes, and in which precision: `device` and `precision` of the training configuration, resolved.

Master weights, gradients, optimizer states, the loss and everything stored are float32. `bf16` lets matrix products
(torch's autocast; normalisations and softmax stay float32 on GPUs) read bfloat16 copies. `auto` is float32: on CPUs its runs
repeat bit for bit, and on GPUs bfloat16 gained nothing with models of the size of the shipped presets (docs/training.md).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from model.config import ConfigError
from model.training.config import DeviceKind, Precision


@dataclass(frozen=True)
class Compute:
    """A device and the precision of matrix products on it."""

    device: torch.device
    precision: Precision  # F32 or BF16

    @classmethod
    def resolve(cls, device: DeviceKind, precision: Precision) -> Compute:
        """What the configuration means on this machine; raises `ConfigError` for a GPU that is not there."""
        has_gpu = torch.cuda.is_available()
        if device is DeviceKind.CUDA and not has_gpu:
            raise ConfigError(
                f"device: expected a CUDA device that torch {torch.__version__} can use, found none; "
                "use `device: cpu` or `auto`, or install a CUDA build of torch"
            )
        on_gpu = has_gpu and device is not DeviceKind.CPU
        if precision is Precision.AUTO:
            precision = Precision.F32
        return cls(torch.device("cuda" if on_gpu else "cpu"), precision)

    @property
    def name(self) -> str:
        """The device for people and tables, such as ``cpu`` or ``NVIDIA H100 80GB HBM3``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """The context that forward passes run in."""
        if self.precision is Precision.F32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(module.parameters()).device
