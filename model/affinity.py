"""Affinities: what a user's own record says of a candidate, counted on the host from the visible histories.

An event (an impression) *succeeded* when an outcome (a click) on the same item followed it before the
item's next such event. Per event h, the residual is what the user did beyond what was to be expected of
an item that succeeds at rate p(h), given how often this user's events succeed at all:

    lift     = (Σ_h success(h) + κ·base) / (Σ_h p(h) + κ·base)
    residual = success(h) − min(p(h)·lift, 0.95)

A candidate c and an event h overlap in a feature by the cosine of their values, w(c, h) = |c ∩ h| / √(|c|·|h|).
Per feature a candidate gets two numbers, per request there are two more:

    taste    = Σ_h w·residual / √(1 + Σ_h w)           familiarity = ln(1 + Σ_h w)
    rate     = logit of the user's smoothed success rate − logit(base),    ln(lift)

Both sums factor over the values: the history's are counted once (`AffinityRecord`, kept with a user's state in serving), a
candidate looks its own up, and no pair of candidate and event is formed. Torch-free; the one caller
is `model.features.FeatureEncoder`, in training and serving alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.records import ITEM, TIME_MS, Records

PER_FEATURE = ("taste", "familiarity")
PER_REQUEST = ("rate", "lift")
CEILING = 0.95
SLOTS = 1 << 16
"""Places of the table in which candidates look values up (a power of two)."""


@dataclass(frozen=True)
class RateTable:
    """Smoothed success rates by item of the training part: `keys` int64 [N] sorted, `rates` float32 [N], `base` for others."""

    keys: NDArray[np.int64]
    rates: NDArray[np.float32]
    base: float

    def of(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rates of item keys [H]."""
        if not len(self.keys):
            return np.full(len(keys), self.base)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.rates[at], self.base).astype(np.float64)


@dataclass(frozen=True)
class Record:
    """How a user's H events went: residuals float64 [H], and the two numbers per request, float32 [2]."""

    residuals: NDArray[np.float64]
    request: NDArray[np.float32]


def succeeded(events: Records, outcomes: Records) -> NDArray[np.bool_]:
    """Whether an outcome on the same item followed each event [H], before that item's next event. Orders do not matter."""
    success = np.zeros(len(events), dtype=bool)
    if not len(events) or not len(outcomes):
        return success
    codes = np.unique(np.concatenate([events[ITEM], outcomes[ITEM]]), return_inverse=True)[1]
    times = np.concatenate([events[TIME_MS], outcomes[TIME_MS]])
    rank = np.unique(times, return_inverse=True)[1]
    at = codes.astype(np.int64) * (len(times) + 1) + rank  # ordered by item, then by time
    own, others = at[: len(events)], at[len(events) :]
    order = np.argsort(own, kind="stable")
    last = np.searchsorted(own[order], others, side="right") - 1  # the newest event that is not after the outcome
    found = order[np.maximum(last, 0)]
    same = (last >= 0) & (codes[found] == codes[len(events) :])
    success[found[same]] = True
    return success


def record_of(events: Records, outcomes: Records, table: RateTable, prior: float) -> Record:
    """Residuals of a user's events; `prior` is κ, in events."""
    success = succeeded(events, outcomes)
    expected, base = table.of(events[ITEM]), table.base
    count, hits = len(events), float(success.sum())
    lift = (hits + prior * base) / (float(expected.sum()) + prior * base)
    rate = np.log((hits + prior * base) / (count - hits + prior * (1 - base))) - np.log(base / (1 - base))
    residuals: NDArray[np.float64] = success - np.minimum(expected * lift, CEILING)
    return Record(residuals, np.array([rate, np.log(lift)], dtype=np.float32))


@dataclass(frozen=True)
class ValueSpace:
    """Table rows of F features as numbers of one space (0: no value), so that one pass counts them all.

    Of an event's columns [W'] and of a candidate's [W]: `starts` [F] is each feature's first column, `offsets` what is added
    to the rows of a column, in the narrower integer that holds every number.
    """

    event_starts: NDArray[np.int64]
    event_offsets: NDArray[np.signedinteger]
    item_starts: NDArray[np.int64]
    item_offsets: NDArray[np.signedinteger]

    @classmethod
    def of(cls, table_rows: Sequence[int], event_values: Sequence[int], item_values: Sequence[int]) -> ValueSpace:
        """From the rows of the features' tables, and the columns that each has in an event and in a candidate."""
        number = np.int32 if sum(table_rows) <= np.iinfo(np.int32).max else np.int64
        first = np.concatenate([[0], np.cumsum(table_rows)[:-1]]).astype(number)
        starts = [np.concatenate([[0], np.cumsum(v)[:-1]]).astype(np.int64) for v in (event_values, item_values)]
        return cls(starts[0], np.repeat(first, event_values), starts[1], np.repeat(first, item_values))


@dataclass(frozen=True)
class ValueSums:
    """Sums of w and of w·residual over a history's events, without the candidate's share of the cosine, by value.

    `values` [V + 1] are ascending numbers of a `ValueSpace`, the first one 0; `mass` and `pull` float64 [V + 1] begin with 0.
    """

    values: NDArray[np.signedinteger]
    mass: NDArray[np.float64]
    pull: NDArray[np.float64]


@dataclass(frozen=True)
class AffinityRecord:
    """What a user's histories say, whatever the candidates: `context` float32 [2 A] as graphs take it; sums per affinity."""

    context: NDArray[np.float32]
    sums: tuple[ValueSums, ...]

    @classmethod
    def nothing(cls) -> AffinityRecord:
        """Of a schema without affinities."""
        return cls(np.zeros(0, np.float32), ())

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.context.nbytes + sum(s.values.nbytes + s.mass.nbytes + s.pull.nbytes for s in self.sums)


def value_sums(space: ValueSpace, events: NDArray[np.int32], residuals: NDArray[np.float64]) -> ValueSums:
    """The sums of a history with table rows [H, W'] (rows ≤ 0 are no value) and residuals [H]."""
    theirs = np.where(events > 0, events + space.event_offsets, 0)
    values, at = np.unique(np.append(theirs.ravel(), theirs.dtype.type(0)), return_inverse=True)
    columns = np.diff(np.append(space.event_starts, theirs.shape[1]))
    weight = np.repeat(_cosine_share(events, space.event_starts), columns, axis=1)
    mass = np.asarray(np.bincount(at[:-1], weight.ravel(), len(values)), np.float64)
    pull = np.asarray(np.bincount(at[:-1], (weight * residuals[:, None]).ravel(), len(values)), np.float64)
    mass[0] = pull[0] = 0.0
    return ValueSums(values, mass, pull)


def overlaps(space: ValueSpace, candidates: NDArray[np.int32], sums: ValueSums) -> NDArray[np.float32]:
    """Taste and familiarity per feature, float32 [C, 2 F], of candidates with table rows [C, W]; rows ≤ 0 are no value."""
    ours = np.where(candidates > 0, candidates + space.item_offsets, 0)
    at = _places(sums.values, ours)
    share = _cosine_share(candidates, space.item_starts)
    found = np.add.reduceat(sums.mass[at], space.item_starts, axis=1) * share
    taste = np.add.reduceat(sums.pull[at], space.item_starts, axis=1) * share / np.sqrt(1 + found)
    return np.stack([taste, np.log1p(found)], axis=-1).reshape(len(ours), -1).astype(np.float32)


def _places(values: NDArray[np.signedinteger], wanted: NDArray[np.signedinteger]) -> NDArray[np.intp]:
    """Where each wanted number [C, W] is among `values` [V + 1], which are distinct and begin with 0; 0 for others.

    A table by the last bits of a number, with a second one for values that found their place taken, and so on: one round
    where tables are small, seldom more than two. A binary search per number would be most of the cost of a Rank's affinities.
    """
    found = np.zeros(wanted.shape, np.intp)
    left, places = np.arange(len(values)), wanted & (SLOTS - 1)
    while len(left):
        table = np.zeros(SLOTS, np.int32)
        slots = values[left] & (SLOTS - 1)
        table[slots] = left
        at = table[places]
        np.copyto(found, at, where=values[at] == wanted)
        left = left[table[slots] != left]
    return found


def _cosine_share(rows: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / √(number of values) per row and feature, [N, F]."""
    return 1 / np.sqrt(np.maximum(np.add.reduceat(rows > 0, starts, axis=1, dtype=np.int64), 1))


def counted_rates(
    keys: NDArray[np.int64], positives: NDArray[np.float64], shown: NDArray[np.float64], strength: float
) -> RateTable:
    """Rates (positives + strength · base) / (shown + strength) from counts of every item [I], `keys` ascending."""
    base = float(np.float32(np.clip(positives.sum() / max(shown.sum(), 1.0), 1e-4, 1 - 1e-4)))  # as it will be stored
    rates = (positives + strength * base) / (shown + strength)
    return RateTable(keys, rates.astype(np.float32), base)


def tables_to_arrays(tables: Mapping[str, RateTable]) -> dict[str, NDArray[np.generic]]:
    """Arrays by name, to be stored; the base rate is the last of the rates."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, table in tables.items():
        arrays[f"rate.{name}.keys"] = table.keys
        arrays[f"rate.{name}.rates"] = np.append(table.rates, np.float32(table.base)).astype(np.float32)
    return arrays


def tables_from_arrays(arrays: Mapping[str, NDArray[np.generic]], names: Sequence[str]) -> dict[str, RateTable]:
    """The inverse of `tables_to_arrays`; raises `KeyError`."""
    tables = {}
    for name in names:
        rates = np.asarray(arrays[f"rate.{name}.rates"], dtype=np.float32)
        tables[name] = RateTable(np.asarray(arrays[f"rate.{name}.keys"], dtype=np.int64), rates[:-1], float(rates[-1]))
    return tables
