"""How long work takes here: an online estimate of seconds per FLOP for each graph.

Seeded by the warm-up, updated by every batch, used for admission and retry advice. The fastest rate
ever seen bounds what no queue could help.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SMOOTHING = 0.05


@dataclass
class ServiceRate:
    """Seconds per FLOP by graph: smoothed, and the best seen."""

    smoothed: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def observe(self, graph: str, flops: float, seconds: float) -> None:
        """A batch of `flops` useful FLOPs took `seconds`."""
        if flops <= 0 or seconds <= 0:
            return
        rate = seconds / flops
        known = self.smoothed.get(graph)
        self.smoothed[graph] = rate if known is None else known + SMOOTHING * (rate - known)
        self.best[graph] = min(rate, self.best.get(graph, rate))

    def predicted_s(self, graph: str, flops: float) -> float:
        """Engine seconds for `flops`; 0 while nothing is known."""
        return flops * self.smoothed.get(graph, 0.0)

    def least_s(self, graph: str, flops: float) -> float:
        """Engine seconds at the best rate ever seen."""
        return flops * self.best.get(graph, 0.0)

    def flops_in(self, graph: str, seconds: float) -> float:
        """FLOPs that fit into `seconds` at the best rate; infinite while nothing is known.

        Not the smoothed rate: small batches are slower per FLOP, and would make the next ones smaller still.
        """
        rate = self.best.get(graph, 0.0)
        return seconds / rate if rate > 0 else float("inf")
