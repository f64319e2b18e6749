"""Served lists, and reports of them in any order."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from model.metrics.normalized_entropy import clipped
from serving.feedback.outcome import encode_outcome
from serving.feedback.receipt import ReceiptSigner, ServedList, ShadowPredictions
from serving.feedback.sums import Kind, SumKey, Sums, add

KEY = b"0123456789abcdef"
TASKS = ("click", "like")
SIGNER = ReceiptSigner({1: KEY}, 1, max_age_s=100)
ISSUED_MS = 1_000_000
List = tuple[ServedList, list[int], list[tuple[int, int]]]
"""What was served, the positions that were shown, the (position, task) labels."""


def served(
    k: int = 4, seed: int = 0, version: str = "v1", request_id: str = "r", issued_ms: int = ISSUED_MS, canary: bool = False
) -> ServedList:
    rng = np.random.default_rng(seed)
    predictions = rng.uniform(0.01, 0.99, (k, 2)).astype(np.float32)
    shadow = ShadowPredictions("v9", rng.uniform(0.01, 0.99, (k, 2)).astype(np.float32)) if canary else None
    return ServedList(request_id, issued_ms, version, "home", 1, rng.integers(-(2**60), 2**60, k), predictions, TASKS, shadow)


@st.composite
def reported_lists(draw: st.DrawFn) -> tuple[list[List], list[bytes]]:
    """Lists, and all that is reported of them: whole, in pieces, repeated, in any order."""
    lists: list[List] = []
    reports: list[bytes] = []
    for number in range(draw(st.integers(1, 5))):
        k = draw(st.integers(1, 6))
        version, issued = draw(st.sampled_from(["v1", "v2"])), ISSUED_MS + 60_000 * draw(st.integers(0, 2))
        one = served(k, number, version, f"r{number}", issued, canary=draw(st.booleans()))
        shown = draw(st.lists(st.integers(0, k - 1), unique=True))
        labels = draw(st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, 1)), unique=True))
        lists.append((one, shown, labels))
        receipt = SIGNER.sign(one)
        reports += [encode_outcome(receipt, shown, labels, issued + 1)] * draw(st.integers(1, 3))
        reports += [encode_outcome(receipt, [p], [], issued + 2) for p in shown]
        reports += [encode_outcome(receipt, [], [pair], issued + 3) for pair in labels]
    random.Random(draw(st.integers(0, 1000))).shuffle(reports)
    return lists, reports


def offline_sums(lists: Sequence[tuple[ServedList, Sequence[int], Sequence[tuple[int, int]]]]) -> Sums:
    """NE sums of whole lists at once, from (served, shown positions, labels in time)."""
    sums: Sums = {}
    for served, shown, labels in lists:
        for number, task in enumerate(served.tasks):
            p = clipped(served.predictions[list(shown), number])
            y = np.array([(position, number) in labels for position in shown], bool)
            odds = np.log1p(-p[y]) - np.log(p[y])
            state = [len(p), p.sum(), -np.log1p(-p).sum(), y.sum(), odds[odds > 0].sum(), -odds[odds < 0].sum(), 0.0]
            add(sums, {SumKey(Kind.NE, task, served.model_version, served.slice_value): np.array(state, np.float64)})
    return sums


def now_ms() -> int:
    """Wall clock, ms since the epoch."""
    return time.time_ns() // 1_000_000
