"""Exponential moving average of a model's weights (Polyak averaging): what is evaluated, kept and exported when asked for.

    a ← a + (1 − d_t) · (w − a),   d_t = min(decay, (1 + t) / (10 + t))

after step t, so that the average is not one of the random start. Rows of embedding tables that a step does not touch keep
their weight, so their average is caught up with only when they are touched next, or asked for: with A_t = Σ ln d and the
row last brought up to date at A_s, a ← w + (a − w) · exp(A_t − A_s). So a step costs what it costs without averages, plus the
dense weights and the touched rows. Memory: a second copy of the weights and 8 bytes per row. Running statistics of `Dice`, an
average themselves, are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model.ranker import KunlunRanker


class WeightAverage:
    """The average of named dense parameters and of table parameters (updated by sparse gradients)."""

    def __init__(self, dense: Mapping[str, nn.Parameter], tables: Mapping[str, nn.Parameter], decay: float) -> None:
        self.dense, self.tables, self.decay = dict(dense), dict(tables), decay
        self.averages = {name: p.detach().clone() for name, p in (self.dense | self.tables).items()}
        self.seen = {name: torch.zeros(p.shape[0], dtype=torch.float64, device=p.device) for name, p in tables.items()}
        self.log_decay, self.steps = 0.0, 0

    @torch.no_grad()
    def before_step(self) -> None:
        """Call when gradients are there and weights not yet updated: brings the rows to be touched up to date."""
        for name, p in self.tables.items():
            if p.grad is not None:
                self._catch_up(name, torch.unique(p.grad._indices()[0]))

    @torch.no_grad()
    def after_step(self) -> None:
        """Call after the update of the weights."""
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        self.log_decay += math.log(d)
        if self.dense:
            torch._foreach_lerp_([self.averages[n] for n in self.dense], list(self.dense.values()), 1 - d)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards. Nothing is copied."""
        with torch.no_grad():
            for name in self.tables:
                self._catch_up(name, slice(None))
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state for a checkpoint."""
        progress = {"log_decay": torch.tensor(self.log_decay, dtype=torch.float64), "steps": torch.tensor(self.steps)}
        return {"averages": self.averages, "averages_seen": self.seen | progress}

    @torch.no_grad()
    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `tensors` returned."""
        for name, average in self.averages.items():
            average.copy_(groups["averages"][name])
        for name, seen in self.seen.items():
            seen.copy_(groups["averages_seen"][name])
        self.log_decay = float(groups["averages_seen"]["log_decay"])
        self.steps = int(groups["averages_seen"]["steps"])

    def _catch_up(self, name: str, rows: Tensor | slice) -> None:
        w, seen = self.tables[name][rows], self.seen[name]
        left = (self.log_decay - seen[rows]).exp().to(w.dtype).unsqueeze(-1)
        self.averages[name][rows] = w + (self.averages[name][rows] - w) * left
        seen[rows] = self.log_decay

    def _swap(self) -> None:
        for name, p in (self.dense | self.tables).items():
            p.data, self.averages[name] = self.averages[name], p.data


def weight_average(model: KunlunRanker, position_bias: nn.Module, decay: float | None) -> WeightAverage | None:
    """The average of all of a run's weights; None without a decay."""
    if decay is None:
        return None
    tables = {f"tables.{name}": model.tables.weight(name) for name in model.tables.names}
    owned = {id(p) for p in tables.values()}
    named = [*model.named_parameters(prefix="model"), *position_bias.named_parameters(prefix="position")]
    return WeightAverage({name: p for name, p in named if id(p) not in owned}, tables, decay)
