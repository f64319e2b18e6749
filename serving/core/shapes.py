"""Shape buckets: the few tensor shapes an engine ever sees, all warmed at start-up.

Rule of bit-equality: a user's padded history lengths depend on that user's own histories alone,
never on batch mates. There are a few *levels* (an eighth, a quarter, half and all of every cap), one
level for all event types together, and users are batched only with users of their level. Row counts
(users, requests, candidates) are padded up to buckets; on the CPU engine the row count does not
change a row's bits (tested).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from math import ceil

from model.schema import Schema
from serving.core.options import CoreOptions

LEVEL_SHARES = (0.125, 0.25, 0.5, 1.0)
MIN_STEPS = 8


class ShapeBuckets:
    """Buckets of one model under the given options."""

    def __init__(self, schema: Schema, options: CoreOptions) -> None:
        by_share = _levels(schema)
        self.shares: tuple[float, ...] = tuple(by_share)
        self.levels: tuple[Mapping[str, int], ...] = tuple(by_share.values())
        self.users = powers_of_two(options.max_batch_users)
        self.requests = powers_of_two(options.max_batch_requests)
        self.candidates = quarter_octaves(options.max_batch_candidates)

    def level(self, lengths: Mapping[str, int]) -> int:
        """The smallest level that holds histories of these lengths (at most the caps)."""
        for index, level in enumerate(self.levels):
            if all(lengths[event] <= steps for event, steps in level.items()):
                return index
        raise ValueError(f"history lengths: expected at most {dict(self.levels[-1])}, found {dict(lengths)}")


def round_up(buckets: tuple[int, ...], count: int) -> int:
    """The smallest bucket that holds `count` rows."""
    return buckets[bisect_left(buckets, count)]


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4, … up to and including `largest`."""
    sizes = {largest}
    size = 1
    while size < largest:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes))


def quarter_octaves(largest: int) -> tuple[int, ...]:
    """Multiples of 8, four per doubling from 32 on (padding below 25 %), up to and including `largest`."""
    sizes = {largest, *(s for s in (8, 16, 24) if s < largest)}
    octave = 32
    while octave < largest:
        sizes.update(s for s in (octave, octave * 5 // 4, octave * 6 // 4, octave * 7 // 4) if s < largest)
        octave *= 2
    return tuple(sorted(sizes))


def _levels(schema: Schema) -> dict[float, Mapping[str, int]]:
    """Padded lengths per event type by share of the caps; shares that make no difference are left out."""
    levels: dict[float, Mapping[str, int]] = {}
    for share in LEVEL_SHARES:
        level = {e.name: min(e.cap, max(MIN_STEPS, ceil(e.cap * share))) for e in schema.events}
        if level not in levels.values():
            levels[share] = level
    return levels
