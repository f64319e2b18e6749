"""`python -m loadtest.checks.canary_simulation`: how soon a canary that is 1 % worse in NE is called, and how often wrongly.

Impressions of a world whose probabilities are known; a model is the true log-odds with an error of its own, as two
trainings of one configuration differ. The canary's error is made larger until its NE is 1 % worse. Each run looks at
the verdict after every so many lists and stops at the first (`model.metrics.paired_ne`, alpha 0.01):

* paired: both models predict every impression;
* split: each list is predicted by one of the two, half and half, judged by the same confidence sequence;
* null: the canary is as good as the live model, so every verdict is a false alarm.

The last line is one JSON object with `ok`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.checks.check import Check, run_checks
from model.cli.console import progress_bar
from model.metrics.normalized_entropy import NEState, clipped
from model.metrics.paired_ne import PairedNE, Verdict

SEED, ALPHA, LIST, ERROR = 20_261_125, 0.01, 10, 0.4
LOOK, SPLIT_LOOK = 100, 10_000
"""Lists between two looks."""

MOST_LISTS, NULL_LISTS = 4_000_000, 10_000
REGRESSION = 0.01


@dataclass(frozen=True)
class World:
    """Draws impressions; `error`, `canary_error`: standard deviations of the models' log-odds."""

    rng: np.random.Generator
    error: float
    canary_error: float

    def lists(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Predictions of the live model and of the canary, and labels, [count, LIST] each."""
        shape = (count, LIST)
        truth = self.rng.normal(-2.8, 1.0, shape) + self.rng.normal(0, 0.5, (count, 1))
        labels = (self.rng.random(shape) < _sigmoid(truth)).astype(np.float64)
        live, canary = (_sigmoid(truth + self.rng.normal(0, error, shape)) for error in (self.error, self.canary_error))
        return live, canary, labels


def worse_error(rng_seed: int, error: float, lists: int = 200_000) -> float:
    """The error whose NE is `REGRESSION` above that of `error`, by bisection on the same draws."""

    def ne(candidate: float) -> float:
        _, canary, labels = World(np.random.default_rng(rng_seed), error, candidate).lists(lists)
        return NEState.of(canary.ravel(), labels.ravel()).normalized_entropy

    target, low, high = ne(error) * (1 + REGRESSION), error, 4 * error
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if ne(middle) < target else (low, middle)
    return (low + high) / 2


def paired(world: World, count: int) -> PairedNE:
    """Both models on the same lists."""
    live, canary, labels = world.lists(count)
    return PairedNE.of(live.ravel(), canary.ravel(), labels.ravel(), np.repeat(np.arange(count), LIST))


def split(world: World, count: int) -> PairedNE:
    """Half of `count` lists to each model; a list of the one is set against a list of the other."""
    live, canary, labels = world.lists(count)
    half = count // 2
    gap = _loss(canary[half:], labels[half:]).sum(1) - _loss(live[:half], labels[:half]).sum(1)
    positives = labels.sum() / 2
    return PairedNE(half, half * LIST, positives, gap.sum(), float(gap @ gap), LIST * gap.sum(), half * LIST**2)


def lists_until_verdict(draw: Callable[[int], PairedNE], look: int, most: int, tightest_at: float) -> tuple[int, Verdict]:
    """Lists served until the first verdict, or `most` without one."""
    total, seen = PairedNE(), 0
    while seen < most:
        total, seen = total + draw(look), seen + look
        verdict = total.ne_difference(ALPHA, tightest_at).verdict
        if verdict is not Verdict.UNDECIDED:
            return seen, verdict
    return seen, Verdict.UNDECIDED


def _loss(p: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    p = clipped(p)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def simulate(runs: int, null_runs: int, seed: int) -> Check:
    """Impressions until a verdict, paired and split, and how often equal models are told apart."""
    seeds = np.random.SeedSequence(seed).spawn(2 * runs + null_runs)
    worse = worse_error(seed, ERROR)
    called: dict[str, list[int]] = {"paired": [], "split": []}
    wrong = false = 0
    with progress_bar(False) as bar:
        task = bar.add_task("simulating", total=len(seeds), note="")
        for at in range(runs):
            for number, (name, draw, look, best) in enumerate(
                (("paired", paired, LOOK, 2_000.0), ("split", split, SPLIT_LOOK, 500_000.0))
            ):
                world = World(np.random.default_rng(seeds[2 * at + number]), ERROR, worse)
                lists, verdict = lists_until_verdict(lambda n, w=world, d=draw: d(w, n), look, MOST_LISTS, best)  # type: ignore[misc]
                called[name].append(lists * LIST)
                wrong += verdict is not Verdict.WORSE
                bar.advance(task)
        for null_seed in seeds[2 * runs :]:
            world = World(np.random.default_rng(null_seed), ERROR, ERROR)
            _, verdict = lists_until_verdict(lambda n, w=world: paired(w, n), LOOK, NULL_LISTS, 2_000.0)  # type: ignore[misc]
            false += verdict is not Verdict.UNDECIDED
            bar.advance(task)
    medians = {name: float(np.median(found)) for name, found in called.items()}
    ratio, rate = medians["split"] / medians["paired"], false / null_runs
    figures = {
        "impressions_paired": medians["paired"],
        "impressions_split": medians["split"],
        "ratio": round(ratio, 1),
        "false_alarm_rate": rate,
        "without_or_wrong_verdict": wrong,
        "null_runs": null_runs,
        "impressions_of_a_null_run": NULL_LISTS * LIST,
        "seed": seed,
    }
    target = f"called with ≥ 5 × fewer impressions than split traffic needs, false alarms ≤ {ALPHA:.0%}"
    return Check("canary_simulation", figures, target, ratio >= 5 and rate <= ALPHA and wrong == 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.canary_simulation", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs with a worse canary, paired and split (default: 20)")
    parser.add_argument("--null-runs", type=int, default=200, help="runs with an equal one (default: 200)")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    return run_checks({"canary_simulation": lambda: simulate(arguments.runs, arguments.null_runs, arguments.seed)})


if __name__ == "__main__":
    sys.exit(main())
