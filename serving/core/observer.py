"""What the core tells about itself while it works; metrics and traces implement it.

Called on the event loop, on the hot path: implementations only add numbers.
"""

from __future__ import annotations

from typing import Protocol

from serving.core.types import RankResult


class Observer(Protocol):
    """Hears every event that a metric is made of. Times in seconds, work in FLOPs."""

    def ranked(self, result: RankResult, total_s: float) -> None:
        """A request was answered."""

    def refused(self, reason: str) -> None:
        """A request was refused: `overloaded`, `deadline`, `unready` or `invalid`."""

    def demanded(self, engine_s: float, host_s: float) -> None:
        """A request was read: predicted seconds of engine slots and of the event loop that its full answer needs."""

    def batch(
        self,
        graph: str,
        rows: int,
        padded_rows: int,
        useful_flops: float,
        executed_flops: float,
        seconds: float,
        cpu_seconds: float,
        reason: str,
    ) -> None:
        """The engine ran a batch; `reason` is why it was dispatched (`serving.core.batching.Reason`).

        `cpu_seconds`: CPU time of the slot's thread; of one-thread slots that is all the engine used.
        """

    def wasted(self, graph: str, seconds: float) -> None:
        """Engine time that began after its caller had gone, or after the deadline: part of the busy time."""

    def insane_scores(self) -> None:
        """The model returned something that is no probability; the reply fell to the prior."""

    def queue_depth(self, depth: int) -> None:
        """Encodes and scores now waiting for an engine slot; background work is not counted."""

    def user_state(self, hit: bool) -> None:
        """A request found its user state in the cache, or not."""

    def user_state_bytes(self, total: int) -> None:
        """Bytes of all cached user states."""

    def item_cache(self, hits: int, misses: int) -> None:
        """Candidates of a request found in the near cache (stale ones included), and those that were not."""

    def user_features(self, hit: bool) -> None:
        """A request found its user's features in the near cache, or not."""

    def missing_feature(self, group: str, feature: str, count: int) -> None:
        """`count` records of a group (`item`, `user`) lacked a feature when they were made into inputs: its default is used."""

    def store_read(self, seconds: float, outcome: str) -> None:
        """One store read ended: `ok`, `failed` or `skipped` (circuit open)."""
