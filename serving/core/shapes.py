"""Shape buckets: the few tensor shapes an engine ever sees.

Rule of bit-equality: a user's padded history lengths depend on that user's own histories alone,
never on batch mates. There are a few *levels* (shares of every cap), one level for all event types
together, and users are batched only with users of their level. Row counts (users, requests,
candidates) are padded up to buckets; on the CPU engine the row count does not change a row's bits
(tested).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from model.records import Records
from model.schema import Schema
from serving.core.options import CoreOptions

LEVEL_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
MIN_STEPS = 8
LEAST_CANDIDATES = 24
"""For fewer rows the CPU engine takes other bf16 kernels (seen with AMX), whose scores differ in bits."""


@dataclass(frozen=True)
class EncodeShape:
    """A shape of `encode_user`: history level and users."""

    level: int
    users: int


@dataclass(frozen=True)
class ScoreShape:
    """A shape of `score_candidates`: requests and candidates of all of them."""

    requests: int
    candidates: int


Shape = EncodeShape | ScoreShape


class ShapeBuckets:
    """Buckets of one model under the given options."""

    def __init__(self, schema: Schema, options: CoreOptions) -> None:
        by_share = _levels(schema)
        self.shares: tuple[float, ...] = tuple(by_share)
        self.levels: tuple[Mapping[str, int], ...] = tuple(by_share.values())
        self.users = powers_of_two(options.max_batch_users)
        self.requests = powers_of_two(options.max_batch_requests)
        self.candidates = eighth_octaves(options.max_batch_candidates)

    @cached_property
    def encode_shapes(self) -> tuple[EncodeShape, ...]:
        """Every shape of `encode_user`."""
        return tuple(EncodeShape(level, users) for level in range(len(self.levels)) for users in self.users)

    @cached_property
    def score_shapes(self) -> tuple[ScoreShape, ...]:
        """Every shape of `score_candidates`: a request has at least one candidate."""
        return tuple(ScoreShape(r, c) for r in self.requests for c in self.candidates if c >= r)

    @cached_property
    def essential(self) -> tuple[Shape, ...]:
        """Shapes of which one holds any batch: the most users of every level; few and many requests, octaves of candidates."""
        octaves, requests = set(powers_of_two(self.candidates[-1])), {1, self.requests[-1]}
        encode: list[Shape] = [s for s in self.encode_shapes if s.users == self.users[-1]]
        return (*encode, *(s for s in self.score_shapes if s.requests in requests and s.candidates in octaves))

    def encode_sizes(self, level: int, users: int) -> dict[str, int]:
        """Sizes of the dynamic dimensions of `encode_user`."""
        return {"U": users} | {f"T_{event}": steps for event, steps in self.levels[level].items()}

    def shortened(self, histories: Mapping[str, Records], share: float) -> dict[str, Records]:
        """The newest events of every history, as many as the level of `share` holds."""
        steps = self.levels[self.shares.index(share)]
        return {event: history[-steps[event] :] for event, history in histories.items()}

    def encode_shape(self, level: int, users: int) -> EncodeShape:
        """The smallest shape that holds `users` users of a level."""
        return EncodeShape(level, round_up(self.users, users))

    def score_shape(self, requests: int, candidates: int) -> ScoreShape:
        """The smallest shape that holds a batch."""
        return ScoreShape(round_up(self.requests, requests), round_up(self.candidates, candidates))

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


def eighth_octaves(largest: int) -> tuple[int, ...]:
    """Multiples of 8 from `LEAST_CANDIDATES`, eight per doubling from 64 on (padding below an eighth), up to `largest`."""
    sizes = {largest, *range(LEAST_CANDIDATES, min(64, largest), 8)}
    octave = 64
    while octave < largest:
        sizes.update(s for s in range(octave, 2 * octave, octave // 8) if s < largest)
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
