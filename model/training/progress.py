"""What the training loop tells while it runs: after every step, and of the steps since the last line of ``metrics.jsonl``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from model.training.throughput import Work


@dataclass(frozen=True)
class Progress:
    """What the loop reports after every step. `figures` are those of the last seconds (`model.training.throughput`)."""

    epoch: int
    step: int
    total_steps: int
    loss: float
    figures: dict[str, Any]


@dataclass
class Since:
    """Steps since the last line of ``metrics.jsonl``."""

    began: float = field(default_factory=time.monotonic)
    work: Work = field(default_factory=Work)
    losses: list[float] = field(default_factory=list)

    def add(self, work: Work, loss: float) -> None:
        self.work += work
        self.losses.append(loss)
