"""The degradation ladder: which rung a request takes when the engine has more to do than time to do it.

Every way to answer a request has a price in engine seconds (exact, from the FLOP formulas and the
work-time model) and a loss in Normalized Entropy (measured by `kunlun frontier`). Pressure, the share
of the request's time budget that the queue already needs, sets the exchange rate: how much NE one
engine second is worth. A request takes the answer of least ``loss + rate · seconds``. So without
pressure everybody gets the full answer; as pressure rises, the steps that cost least NE per
millisecond go first and the largest requests take them before small ones; and under any load there
is an answer in time, since the last rung costs no engine time at all. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from serving.core.frontier import Frontier
from serving.core.types import Rung

LEAST_LOSS = 1e-6
"""A measured gain of a cheaper answer is noise: the full answer wins ties."""

SPREAD = 10.0
"""The exchange rate runs from this much below the cheapest step of the frontier to this much above the dearest."""


@dataclass(frozen=True)
class Way:
    """One way to answer: predicted engine seconds, relative NE loss, and what to do.

    `history_share`: histories cut to this share of their caps (1: whole). `keep`: candidates that are
    scored (0: all). `stale`: the cached state is used although newer events exist.
    """

    seconds: float
    loss: float = 0.0
    rung: Rung = Rung.FULL
    stale: bool = False
    history_share: float = 1.0
    keep: int = 0


@dataclass(frozen=True)
class Costs:
    """Predicted engine seconds of the parts of one request.

    `encode`: by history share (1: whole); empty when the state is at hand. `events_behind`: of the stale
    state that could be used instead; None: there is none.
    """

    encode: Mapping[float, float]
    per_candidate: float
    fixed: float
    candidates: int
    events_behind: int | None = None


class Ladder:
    """Chooses among the ways to answer. `begins`, `ends`: pressure between which the exchange rate rises."""

    def __init__(self, frontier: Frontier, begins: float, ends: float) -> None:
        self._begins, self._ends = begins, ends
        steps = frontier.steps
        self._stale = sorted((s.setting, max(s.ne_loss, LEAST_LOSS)) for s in steps if s.rung == Rung.STALE_STATE.name)
        self._short = _losses(frontier, Rung.SHORT_HISTORY)
        self._fewer = _losses(frontier, Rung.FEWER_CANDIDATES)
        self._prior = max((s.ne_loss for s in steps if s.rung == Rung.PRIOR.name), default=1.0)
        per_second = [max(s.ne_loss, LEAST_LOSS) / (s.ms_saved / 1e3) for s in steps if s.ms_saved > 0]
        self._least_rate = min(per_second, default=1.0) / SPREAD
        self._most_rate = max(per_second, default=1.0) * SPREAD

    def choose(self, costs: Costs, wait_s: float, budget_s: float, weight: float = 1.0) -> Way:
        """The best way under the present pressure; the prior when nothing else can be in time.

        `weight`: of the pressure; above 1 for requests that are to be degraded before others.
        """
        prior = Way(0.0, self._prior, Rung.PRIOR)
        if budget_s <= 0:
            return prior
        rate = self._rate(weight * wait_s / budget_s)
        ways = self._ways(costs) if rate else [self._full(costs)]
        in_time = [way for way in ways if wait_s + way.seconds <= budget_s]
        return min([*in_time, prior] if rate else in_time or [prior], key=lambda way: way.loss + rate * way.seconds)

    def _rate(self, pressure: float) -> float:
        """NE per engine second; geometric between its bounds."""
        if pressure <= self._begins:
            return 0.0
        share = min(1.0, (pressure - self._begins) / (self._ends - self._begins))
        return self._least_rate * math.pow(self._most_rate / self._least_rate, share)

    def _full(self, costs: Costs) -> Way:
        return Way(costs.encode.get(1.0, 0.0) + costs.fixed + costs.candidates * costs.per_candidate)

    def _ways(self, costs: Costs) -> Iterable[Way]:
        """Every combination of a state and a number of candidates; losses add up."""
        states = list(self._states(costs))
        for seconds, loss, rung, stale, share in states:
            scoring = costs.fixed + costs.candidates * costs.per_candidate
            yield Way(seconds + scoring, loss, rung, stale, share)
            for kept, fewer_loss in self._fewer.items():
                keep = max(1, math.ceil(costs.candidates * kept))
                if keep < costs.candidates:
                    scoring = costs.fixed + keep * costs.per_candidate
                    worse = max(rung, Rung.FEWER_CANDIDATES)
                    yield Way(seconds + scoring, loss + fewer_loss, worse, stale, share, keep)

    def _states(self, costs: Costs) -> Iterable[tuple[float, float, Rung, bool, float]]:
        """(engine seconds, loss, rung, stale, history share) of every state that could be used."""
        yield costs.encode.get(1.0, 0.0), 0.0, Rung.FULL, False, 1.0
        if not costs.encode:
            return
        if costs.events_behind is not None:
            loss = next((loss for behind, loss in self._stale if costs.events_behind <= behind), None)
            if loss is not None:
                yield 0.0, loss, Rung.STALE_STATE, True, 1.0
        for share, loss in self._short.items():
            if share in costs.encode:
                yield costs.encode[share], loss, Rung.SHORT_HISTORY, False, share


def describe(way: Way, candidates: int) -> str:
    """Why a reply is degraded, for its `rung_reason`."""
    if way.rung is Rung.PRIOR:
        return "overload: no engine time is left"
    parts: Sequence[str] = [
        "a user state older than the newest events" if way.stale else "",
        f"histories cut to {way.history_share:g} of their caps" if way.history_share < 1 else "",
        f"{way.keep} of {candidates} candidates scored" if way.keep else "",
    ]
    return "overload: " + ", ".join(filter(None, parts))


def _losses(frontier: Frontier, rung: Rung) -> dict[float, float]:
    return {s.setting: max(s.ne_loss, LEAST_LOSS) for s in frontier.steps if s.rung == rung.name}
