"""What a run measures beside Locust's own statistics, gathered in workers and added up at the master. Imports no Locust."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.metrics.normalized_entropy import NEState

KEY = "kunlun"


@dataclass
class Measures:
    """`served`, `truth`: NE of what the server predicted and of the true probabilities, on the same clicks.

    `seconds`: Ranks that were due and those that missed the bound or failed, by second of the wall clock. `faults`: what should
    not happen at any load, and how often it did.
    """

    served: NEState = field(default_factory=NEState)
    truth: NEState = field(default_factory=NEState)
    seconds: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    faults: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forget everything."""
        self.served, self.truth = NEState(), NEState()
        self.seconds.clear()
        self.faults.clear()

    def impressions(self, served: NDArray[np.floating], truth: NDArray[np.floating], clicked: NDArray[np.bool_]) -> None:
        """One list that was looked at: probabilities by the server and in truth, and the clicks, all [N]."""
        self.served += NEState.of(served, clicked)
        self.truth += NEState.of(truth, clicked)

    def due(self, second: int, *, missed: bool) -> None:
        """One Rank."""
        counts = self.seconds[second]
        counts[0] += 1
        counts[1] += missed

    def take(self) -> dict[str, Any]:
        """Everything since the last call, as plain values."""
        seconds = {str(second): counts for second, counts in self.seconds.items()}
        taken = {"served": asdict(self.served), "truth": asdict(self.truth), "seconds": seconds}
        taken["faults"] = dict(self.faults)
        self.clear()
        return taken

    def add(self, taken: dict[str, Any]) -> None:
        """What a worker took."""
        self.served += NEState(**taken["served"])
        self.truth += NEState(**taken["truth"])
        self.faults.update(taken["faults"])
        for second, (due, missed) in taken["seconds"].items():
            counts = self.seconds[int(second)]
            counts[0] += due
            counts[1] += missed


def three_figures(response_time: float) -> float:
    """Locust keeps response times rounded to whole milliseconds, too coarse here: three significant digits."""
    if response_time <= 0:
        return 0.0
    return round(response_time, 2 - math.floor(math.log10(response_time)))
