"""The highest rate that a server sustains under a latency bound, by search with a statistical stopping rule.

A rate passes when the share of requests that miss the bound is below the allowed share, at a stated
confidence. A probe sends whole runs, one after the other, until the evidence decides or the runs are
used up (then the point estimate decides). Misses come in bursts, so a run is cut into blocks of a
second and the evidence is a t-interval over blocks, not over requests. The search leaves a first guess
in growing steps until it has a rate that passes and one that fails, then bisects their logarithms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

CONFIDENCE = 0.8
BLOCK_S = 1.0
STEP, MOST_STEP = 1.25, 4.0
"""Factors of the first step away from the first guess and of the largest; each step is the square of the one before."""


@dataclass(frozen=True)
class Probe:
    """One rate that was tried: requests, misses, the miss share with its half-width, and the verdict."""

    rate: float
    requests: int
    share: float
    half_width: float
    passed: bool
    decided: bool


@dataclass(frozen=True)
class Capacity:
    """The highest rate that passed and the lowest that failed, requests per second."""

    rate: float
    fails_at: float
    probes: tuple[Probe, ...] = field(repr=False)


def find_capacity(
    misses_at: Callable[[float, int], tuple[NDArray[np.float64], NDArray[np.bool_]]],
    first_guess: float,
    *,
    allowed: float = 0.01,
    tolerance: float = 0.05,
    runs: int = 3,
    most_probes: int = 12,
    note: Callable[[str], None] = lambda text: None,
) -> Capacity:
    """`misses_at(rate, seed)`: one run: scheduled times [N], seconds, and which requests missed the bound [N]."""
    probes: list[Probe] = []

    def passes(rate: float) -> bool:
        probe = _probe(misses_at, rate, allowed, runs)
        probes.append(probe)
        note(
            f"{rate:8.1f}/s: {probe.share:6.2%} ± {probe.half_width:.2%} of {probe.requests} missed: "
            f"{'passed' if probe.passed else 'failed'}{'' if probe.decided else ' (undecided)'}"
        )
        return probe.passed

    low, high, rate, step = 0.0, float("inf"), first_guess, STEP
    while len(probes) < most_probes and (low == 0.0 or high / low > 1 + tolerance):
        if passes(rate):
            low = rate
        else:
            high = rate
        if low and high < float("inf"):
            rate = sqrt(low * high)
        else:
            rate, step = (low * step if low else high / step), min(step**2, MOST_STEP)
    return Capacity(low, high, tuple(probes))


def _probe(
    misses_at: Callable[[float, int], tuple[NDArray[np.float64], NDArray[np.bool_]]], rate: float, allowed: float, runs: int
) -> Probe:
    blocks = np.empty((0, 2))
    share, half, decided = 0.0, 0.0, False
    for run in range(runs):
        at, missed = misses_at(rate, run)
        number = (at / BLOCK_S).astype(np.int64)
        blocks = np.vstack([blocks, np.stack([np.bincount(number, missed), np.bincount(number)], axis=1)])
        share, half = _interval(blocks)
        decided = share + half < allowed or share - half > allowed
        if decided:
            break
    return Probe(rate, int(blocks[:, 1].sum()), share, half, share <= allowed, decided)


def _interval(blocks: NDArray[np.float64]) -> tuple[float, float]:
    """Ratio estimate of the miss share over blocks (misses, requests) and its half-width at `CONFIDENCE`.

    Blocks without variance are no certainty: the half-width is at least what as many requests without a
    miss leave open (the exact binomial bound, about 2.3 requests).
    """
    misses, requests = blocks.T
    share = float(misses.sum() / max(1.0, requests.sum()))
    if len(blocks) < 2:
        return share, 1.0
    residuals = misses - share * requests
    error = float(np.sqrt((residuals**2).sum() / (len(blocks) - 1) / len(blocks)) / max(requests.mean(), 1e-9))
    least = -log((1 - CONFIDENCE) / 2) / max(1.0, requests.sum())
    return share, max(least, float(student.ppf((1 + CONFIDENCE) / 2, len(blocks) - 1)) * error)
