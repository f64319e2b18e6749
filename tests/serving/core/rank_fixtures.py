"""Requests, events and observers for tests of the core."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import numpy as np

from model.hashing import string_key
from model.records import ITEM, TIME_MS, event_dtype, feature_dtype, missing_records
from model.schema import Schema
from serving.core.types import CandidateBlock, Overrides, RankRequest, RankResult, UserEvent


class SilentObserver:
    """Hears and forgets."""

    def ranked(self, result: RankResult, total_s: float) -> None: ...

    def refused(self, reason: str) -> None: ...

    def demanded(self, engine_s: float, host_s: float) -> None: ...

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
    ) -> None: ...

    def insane_scores(self) -> None: ...

    def wasted(self, graph: str, seconds: float) -> None: ...

    def queue_depth(self, depth: int) -> None: ...

    def user_state(self, hit: bool) -> None: ...

    def user_state_bytes(self, total: int) -> None: ...

    def item_cache(self, hits: int, misses: int) -> None: ...

    def user_features(self, hit: bool) -> None: ...

    def missing_feature(self, group: str, feature: str, count: int) -> None: ...

    def store_read(self, seconds: float, outcome: str) -> None: ...


class Recorder(SilentObserver):
    """Counts what the core reports."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, int, float, float, str]] = []
        self.counts: Counter[str] = Counter()
        self.bytes = 0
        self.depth = 0

    def ranked(self, result: RankResult, total_s: float) -> None:
        self.counts["ranked"] += 1

    def refused(self, reason: str) -> None:
        self.counts[reason] += 1

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
        self.batches.append((graph, rows, padded_rows, useful_flops, executed_flops, reason))

    def queue_depth(self, depth: int) -> None:
        self.depth = depth

    def user_state(self, hit: bool) -> None:
        self.counts["hit" if hit else "miss"] += 1

    def user_state_bytes(self, total: int) -> None:
        self.bytes = total

    def store_read(self, seconds: float, outcome: str) -> None:
        self.counts[f"read {outcome}"] += 1

    def item_cache(self, hits: int, misses: int) -> None:
        self.counts["item hit"] += hits
        self.counts["item miss"] += misses

    def user_features(self, hit: bool) -> None:
        self.counts["user hit" if hit else "user miss"] += 1

    def missing_feature(self, group: str, feature: str, count: int) -> None:
        self.counts[f"missing {group}.{feature}"] += count

    def rows(self, graph: str) -> int:
        """Rows that the engine ran so far."""
        return sum(rows for ran, rows, *_ in self.batches if ran == graph)

    def encodes(self) -> int:
        """Users encoded so far."""
        return self.rows("encode_user")


def request(
    schema: Schema,
    user: str,
    items: list[int] | np.ndarray,
    *,
    budget_s: float = 30.0,
    top_k: int = 0,
    bids: np.ndarray | None = None,
    user_overrides: Overrides | None = None,
    min_version: int = 0,
    now_ms: int | None = None,
) -> RankRequest:
    """A request of `user` for item ids, from inside a running loop."""
    now = asyncio.get_running_loop().time()
    keys = np.asarray(items, dtype=np.int64)
    context = missing_records(feature_dtype(schema.context), 1)
    context["surface"] = 7
    return RankRequest(
        request_id="r",
        user_id=user,
        user_key=string_key(user, schema.hash),
        candidates=CandidateBlock(keys, columns={"bid": np.ones(len(keys)) if bids is None else bids}),
        context=context,
        received_ms=int(time.time() * 1000) if now_ms is None else now_ms,
        deadline=now + budget_s,
        started=now,
        top_k=top_k,
        user_overrides=user_overrides,
        min_event_version=min_version,
    )


def click(schema: Schema, user: str, item: int, event_id: str, *, time_ms: int | None = None) -> UserEvent:
    """A click of `user` on `item`."""
    record = missing_records(event_dtype(schema.event("click")), 1)
    record[ITEM], record["dwell"] = item, 3.0
    record[TIME_MS] = int(time.time() * 1000) if time_ms is None else time_ms
    return UserEvent(event_id, user, "click", record)


def impression(schema: Schema, user: str, item: int, event_id: str, *, time_ms: int) -> UserEvent:
    """That `item`, of a genre of its own number, was shown to `user`."""
    record = missing_records(event_dtype(schema.event("impression")), 1)
    record[ITEM], record[TIME_MS] = item, time_ms
    record["genres"][:, 0] = 1 + (item - 1) % 20
    return UserEvent(event_id, user, "impression", record)


def by_candidate(result: RankResult) -> np.ndarray:
    """Probabilities in the request's order [C, tasks] (of a reply without top_k)."""
    out = np.empty_like(result.probabilities)
    out[result.order] = result.probabilities
    return out
