"""How long work takes here: an online model of engine seconds as a function of FLOPs, for each graph.

One engine call costs ``fixed + flops · per_flop``; both are fitted by least squares on relative
errors over the last calls, so that small calls, which the fixed part dominates, count as much as
large ones. Seeded by the warm-up, updated by every batch; used for admission, ordering, merging,
splitting and retry advice. Pure arithmetic, a microsecond per observation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MEMORY = 0.98
"""Weight of the past at every observation: about the last fifty calls count."""

OUTLIER = 4.0
"""A call counts as at most this many times its prediction: a neighbour's burst is not our engine's speed."""

SETTLED = 8
DISTINCT = 1e-3
"""Below this relative variance of the FLOPs seen, fixed and proportional cost cannot be told apart."""


@dataclass
class _Fit:
    """Decayed sums over calls (x: FLOPs, y: seconds), weighted by 1 / x²."""

    count: int = 0
    s0: float = 0.0
    sx: float = 0.0
    sy: float = 0.0
    sxx: float = 0.0
    sxy: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    fixed: float = 0.0
    per_flop: float = 0.0

    def add(self, x: float, y: float, least_per_flop: float) -> None:
        self.count += 1
        weight = 1.0 / (x * x)
        for name, term in (("s0", weight), ("sx", weight * x), ("sy", weight * y), ("sxx", 1.0), ("sxy", weight * x * y)):
            setattr(self, name, getattr(self, name) * MEMORY + term)
        self.flops, self.seconds = self.flops * MEMORY + x, self.seconds * MEMORY + y
        spread = self.s0 * self.sxx - self.sx * self.sx
        if spread > DISTINCT * self.s0 * self.sxx:
            self.per_flop = max(least_per_flop, (self.s0 * self.sxy - self.sx * self.sy) / spread)
            self.fixed = max(0.0, (self.sy - self.per_flop * self.sx) / self.s0)
        if self.fixed == 0.0 or spread <= DISTINCT * self.s0 * self.sxx:
            self.per_flop = max(least_per_flop, (self.sy - self.fixed * self.s0) / self.sx)


class WorkTime:
    """Seconds of engine time by graph. `peak_flops`: what no call can exceed, FLOP/s."""

    def __init__(self, graphs: Iterable[str], peak_flops: float = float("inf")) -> None:
        self._least = 1.0 / peak_flops
        self._fits = {graph: _Fit() for graph in graphs}

    def observe(self, graph: str, flops: float, seconds: float) -> None:
        """One engine call did `flops` of work in `seconds`."""
        if flops <= 0 or seconds <= 0:
            return
        fit = self._fits[graph]
        if fit.count >= SETTLED:
            seconds = min(seconds, OUTLIER * self.predicted_s(graph, flops))
        fit.add(flops, seconds, self._least)

    def predicted_s(self, graph: str, flops: float) -> float:
        """Engine seconds of one call; 0 while nothing is known."""
        fit = self._fits[graph]
        return fit.fixed + flops * fit.per_flop

    def backlog_s(self, graph: str, flops: float) -> float:
        """Engine seconds of `flops` of waiting work, in calls such as there were lately."""
        fit = self._fits[graph]
        return flops * fit.seconds / fit.flops if fit.flops else 0.0

    def least_s(self, graph: str, flops: float) -> float:
        """Engine seconds that no queue could help: the peak's, not the model's, so that a pessimistic model can recover."""
        return flops * self._least

    def fixed_s(self, graph: str) -> float:
        """What one more call costs, whatever is in it."""
        return self._fits[graph].fixed

    def added_s(self, graph: str, flops: float) -> float:
        """What `flops` more cost in a call that is made anyway."""
        return flops * self._fits[graph].per_flop

    def flops_in(self, graph: str, seconds: float) -> float:
        """FLOPs of a call of `seconds`; infinite while nothing is known."""
        fit = self._fits[graph]
        return max(0.0, seconds - fit.fixed) / fit.per_flop if fit.per_flop > 0 else float("inf")
