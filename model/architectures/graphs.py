"""What the torch modules of every architecture inherit: named inputs, and calibration inside the served graph.

Inputs come as positional tensors in the order of the signature (what exporters and engines know); a subclass gets them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.architectures.base import ArchitectureConfig
from model.artifact import Calibration
from model.layers.jagged import is_jagged_form
from model.schema import Schema
from model.signature import encode_user_signature, jagged_encode_signature, score_candidates_signature

Given = Mapping[str, Tensor]


class EncodeGraph(nn.Module, ABC):
    """Graph 1: tensors of `encode_user_signature` → the user state, in the order of `state_specs`.

    `jagged_signature`: of the inputs that it takes in the jagged form (`model.layers.jagged.jagged_form`); None: it has none.
    """

    def __init__(self, schema: Schema, config: ArchitectureConfig) -> None:
        super().__init__()
        self.signature = encode_user_signature(schema, config)
        self.jagged_signature = jagged_encode_signature(schema, config)

    @abstractmethod
    def encode(self, given: Given) -> tuple[Tensor, ...]:
        """The state tensors [U, …] of the named inputs."""

    def encode_jagged(self, given: Given) -> tuple[Tensor, ...]:
        """The same of jagged inputs, for architectures whose configuration says that they have this form."""
        raise TypeError(f"{type(self).__name__} has no jagged form")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if is_jagged_form() and self.jagged_signature is not None:
            return self.encode_jagged(dict(zip((spec.name for spec in self.jagged_signature.inputs), tensors, strict=True)))
        return self.encode(dict(zip((spec.name for spec in self.signature.inputs), tensors, strict=True)))


class ScoreGraph(nn.Module, ABC):
    """Graph 2: tensors of `score_candidates_signature` → (logits, probabilities), both calibrated, [C, tasks]."""

    def __init__(self, schema: Schema, config: ArchitectureConfig) -> None:
        super().__init__()
        self.signature = score_candidates_signature(schema, config)
        self.calibration_scale: Tensor
        self.calibration_shift: Tensor
        self.register_buffer("calibration_scale", torch.ones(len(schema.tasks)))
        self.register_buffer("calibration_shift", torch.zeros(len(schema.tasks)))

    @abstractmethod
    def score(self, given: Given) -> Tensor:
        """Logits [C, tasks] of the named inputs, before calibration."""

    def calibrate(self, calibrations: list[Calibration]) -> None:
        """Set the served calibration, one per task: Platt, then the offset ln(negative_rate) of down-sampling."""
        self.calibration_scale.copy_(torch.tensor([c.scale for c in calibrations]))
        offsets = torch.tensor([c.negative_rate for c in calibrations]).log()
        self.calibration_shift.copy_(torch.tensor([c.shift for c in calibrations]) + offsets)

    def calibrated(self, raw: Tensor) -> Tensor:
        """Logits [C, tasks] as they are served, from raw ones."""
        return raw * self.calibration_scale + self.calibration_shift

    def raw_logits(self, *tensors: Tensor) -> Tensor:
        """Logits before calibration, [C, tasks]."""
        return self.score(dict(zip((spec.name for spec in self.signature.inputs), tensors, strict=True)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.calibrated(self.raw_logits(*tensors))
        return logits, logits.sigmoid()


def beside(given: Given, group: str) -> Tensor | None:
    """``<group>_rows`` and ``<group>_dense`` side by side on the last axis; None when the schema has neither."""
    parts = [given[name] for name in (f"{group}_rows", f"{group}_dense") if name in given]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def features(given: Given, group: str) -> Tensor:
    """`beside` of a group that always has features: `user`, `item`, or an event type."""
    found = beside(given, group)
    assert found is not None, group
    return found
