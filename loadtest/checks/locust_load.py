"""`make locust-check`: Locust with our users and shapes, against the open-loop harness and a real server's own counts.

* agreement: both send what one seed draws, from the same CPU, in turn; medians over rounds of p50 and p99 of Rank;
* online NE: what visitors were served and clicked, by Locust's report and by the server's counters;
* shapes: ramp and spike send what they should, and the capacity search finds what the harness's finds.

The last line is one JSON object with `ok`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.bench import Bench
from loadtest.checks.check import Check, run_checks
from loadtest.openloop.capacity import find_capacity
from loadtest.openloop.run import Run, send
from loadtest.openloop.workload import Workload, draw
from loadtest.pipeline import Pipeline
from loadtest.processes import RunningServer
from loadtest.prometheus_text import REPORTED, scrape, total
from loadtest.scoreboard.load_rows import APART, CLIENT_CPU, wait_until_warm
from loadtest.swarm.arrivals import BLOCK_S, source_seed
from loadtest.swarm.process import RANK_ONLY, headless
from model.cli.console import note
from model.data.synthetic import CLICK
from model.metrics.normalized_entropy import NEState

SEED = 20_261_127
P50_RATIO, P50_MS, P99_RATIO, BUSY = 0.05, 1.0, 0.10, 0.5
SAME_NE, SAME_CAPACITY = 1e-4, 0.25
VISITORS, LOW, PEAK, SHAPE_S = 30, 5, 50, 30.0
BOUND_MS, GUESS, PROBE_S, SEARCH_S = 50.0, 100.0, 10.0, 600.0
WORKLOAD = Workload(rate=40, seconds=BLOCK_S, seed=SEED, users=300, items=400, candidates_mean=40, candidates_max=400)
HEAVY = WORKLOAD.model_copy(update={"candidates_mean": 300.0, "candidates_max": 400})


def agreement(bench: Bench, rate: float, rounds: int) -> Check:
    """Run both in turn, each first in every second round. The load must leave the server idle half of the time."""
    harness: list[Run] = []
    swarm: list[dict[str, Any]] = []
    with _server(bench) as server:
        for number in range(1, rounds + 1):
            for is_swarm in (False, True) if number % 2 else (True, False):
                if is_swarm:
                    swarm.append(_swarm(server, rate, number))
                else:
                    harness.append(_harness(server, rate, number))
            note(f"{number}: harness {harness[-1].summary['latency_ms']}, Locust {swarm[-1]['calls']['Rank']}")
    ours = {q: float(np.median([run.summary["latency_ms"][q] for run in harness])) for q in ("p50", "p99")}
    theirs = {q: float(np.median([run["calls"]["Rank"][f"{q}_ms"] for run in swarm])) for q in ("p50", "p99")}
    busy = float(np.median([run.counted.cpu_s / BLOCK_S for run in harness]))
    valid = [run.summary["valid"] for run in harness] + [run["valid"] for run in swarm]
    failed = sum(run["calls"]["Rank"]["failed"] for run in swarm)
    failed += sum(run.summary["requests"] - run.summary["answered"] for run in harness)
    figures = {
        "harness_p50_ms": round(ours["p50"], 2),
        "locust_p50_ms": round(theirs["p50"], 2),
        "harness_p99_ms": round(ours["p99"], 2),
        "locust_p99_ms": round(theirs["p99"], 2),
        "server_cpu_share": round(busy, 3),
        "failed": failed,
        "valid_runs": f"{sum(valid)} of {len(valid)}",
        "rate": rate,
        "calls_each": sum(run.summary["requests"] for run in harness),
        "rounds": rounds,
    }
    p50 = abs(theirs["p50"] - ours["p50"]) <= max(P50_RATIO * ours["p50"], P50_MS)
    p99 = abs(theirs["p99"] / ours["p99"] - 1) <= P99_RATIO
    target = "p50 within max(5 %, 1 ms), p99 within 10 %, the server idle for half of the time, 0 failed, all runs valid"
    return Check("agreement", figures, target, p50 and p99 and busy <= BUSY and failed == 0 and all(valid))


def online_ne(bench: Bench, seconds: float) -> Check:
    """Visitors of the world that the model was trained on; sums of the server over what was reported."""
    world = ["--world", bench.pipeline.path("data"), "--load-seed", str(SEED), "--shown", "10"]
    with _server(bench) as server:
        _, report = headless(server.address, VISITORS, seconds, world, cpu=CLIENT_CPU)
        clicks = report["clicks"]
        with suppress(TimeoutError):  # what is missing stands in the figures
            bench.wait_for_outcomes(server, clicks["impressions"])
        page = scrape(f"http://{server.metrics}/metrics")
        sums = {f.name: total(page, f"kunlun_online_{f.name}_total", task=CLICK, **REPORTED) for f in fields(NEState)}
    counted = NEState(**sums)
    figures: dict[str, Any] = {
        "impressions": clicks["impressions"],
        "impressions_counted": int(counted.examples),
        "clicked": clicks["clicked"],
        "clicked_counted": int(counted.positives),
        "ne_locust": clicks["ne_served"],
        "ne_server": round(counted.normalized_entropy, 6),
        "ne_truth": clicks["ne_truth"],
        "calibration": clicks["calibration"],
        "errors": report["errors"],
        "faults": report["faults"],
    }
    same = figures["impressions"] == figures["impressions_counted"] and figures["clicked"] == figures["clicked_counted"]
    ok = same and not figures["faults"] and abs(figures["ne_server"] / figures["ne_locust"] - 1) <= SAME_NE
    return Check("online_ne", figures, f"the same impressions and clicks, NE within {SAME_NE:g}", ok and clicks["clicked"] > 0)


def shapes(bench: Bench) -> Check:
    """What is sent is a Poisson process: counts within five deviations, and what starts and stops within a second."""
    figures: dict[str, Any] = {}
    ok = True
    with _server(bench) as server:
        for name, expected in (("ramp", SHAPE_S * (LOW + PEAK) / 2), ("spike", SHAPE_S * (2 * LOW + PEAK) / 3)):
            options = ["--peak-users", str(PEAK), "--shape-seconds", str(SHAPE_S), "--load-seed", str(SEED)]
            words = [*_load(WORKLOAD, 1), *options, "RankOnly"]
            _, report = headless(server.address, LOW, 2 * SHAPE_S, words, RANK_ONLY, _shape(name))
            sent, slack = report["calls"]["Rank"]["calls"], 5 * expected**0.5 + 2 * (PEAK - LOW)
            figures[name] = {"calls": sent, "expected": round(expected), "slack": round(slack), "faults": report["faults"]}
            ok = ok and not report["faults"] and abs(sent - expected) <= slack
        figures["capacity"] = _capacity(server)
    ratio = figures["capacity"]["locust_over_harness"]
    within = ratio is not None and abs(ratio - 1) <= SAME_CAPACITY
    target = f"ramp and spike send what is expected, capacities within {SAME_CAPACITY:.0%}"
    return Check("shapes", figures, target, ok and within)


def _capacity(server: RunningServer) -> dict[str, Any]:
    """By both searches, on one server, from one guess; lists are long, so that the engine is the limit."""
    options = [
        "--slo-p99-ms",
        str(BOUND_MS),
        "--first-guess",
        str(GUESS),
        "--load-seed",
        str(SEED),
        "--call-timeout-ms",
        "1000",
    ]
    _, report = headless(
        server.address, 1, SEARCH_S, [*_load(HEAVY, 1), *options, "RankOnly"], RANK_ONLY, _shape("capacity"), cpu=CLIENT_CPU
    )

    def misses(rate: float, run: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        workload = HEAVY.model_copy(update={"rate": rate, "seconds": PROBE_S, "seed": SEED + run})
        sample = send(server, workload, CLIENT_CPU).sample
        return sample.at, ~(sample.answered & (sample.latency_s * 1e3 <= BOUND_MS))

    harness = find_capacity(misses, GUESS, note=note)
    found = report.get("capacity", {"rate": None, "fails_at": None})
    ratio = round(found["rate"] / harness.rate, 3) if found["rate"] and harness.rate else None
    figures = {"locust_per_s": found["rate"], "locust_fails_at": found["fails_at"], "faults": report["faults"]}
    figures |= {"locust_valid": report["valid"], "candidates_mean": HEAVY.candidates_mean}
    return figures | {"harness_per_s": round(harness.rate, 1), "locust_over_harness": ratio, "bound_ms": BOUND_MS}


@contextmanager
def _server(bench: Bench) -> Iterator[RunningServer]:
    """A warm server with the log's users and items."""
    with bench.server(APART | {"slots": 1}) as server:
        bench.load(server)
        _harness(server, WORKLOAD.rate, 0)
        wait_until_warm(server)
        yield server


def _workload(rate: float, number: int) -> Workload:
    """The first block of the one source that Locust has in round `number`."""
    return WORKLOAD.model_copy(update={"rate": rate, "seed": source_seed(SEED + number, 0, 1)})


def _harness(server: RunningServer, rate: float, number: int) -> Run:
    return send(server, _workload(rate, number), CLIENT_CPU)


def _swarm(server: RunningServer, rate: float, number: int) -> dict[str, Any]:
    calls = len(draw(_workload(rate, number)))
    arguments = [*_load(WORKLOAD, rate), "--load-seed", str(SEED + number), "--max-ranks", str(calls), "RankOnly"]
    _, report = headless(server.address, 1, 2 * BLOCK_S, arguments, RANK_ONLY, cpu=CLIENT_CPU)
    return report


def _load(law: Workload, rate_per_user: float) -> list[str]:
    """A law as options of Locust."""
    options = {
        "rate-per-user": rate_per_user,
        "population": law.users,
        "item-count": law.items,
        "candidates-mean": law.candidates_mean,
        "candidates-max": law.candidates_max,
        "call-timeout-ms": law.deadline_ms,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _shape(name: str) -> Path:
    return RANK_ONLY.with_name(f"{name}.py")


def steps(bench: Bench, rate: float = WORKLOAD.rate, rounds: int = 5, seconds: float = 60.0) -> dict[str, Callable[[], Check]]:
    """By name. `rate`, `rounds`: of the agreement; `seconds`: of the visitors whose NE is compared."""
    return {
        "agreement": lambda: agreement(bench, rate, rounds),
        "online_ne": lambda: online_ne(bench, seconds),
        "shapes": lambda: shapes(bench),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.locust_load", description=__doc__)
    parser.add_argument("--only", choices=("agreement", "online_ne", "shapes"), help="one of them (default: all)")
    parser.add_argument("--rate", type=float, default=WORKLOAD.rate, help=f"of the agreement (default: {WORKLOAD.rate:g})")
    parser.add_argument("--rounds", type=int, default=5, help=f"runs of each, {BLOCK_S:g} s long (default: 5)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the visitors whose NE is compared (default: 60)")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/bench"), help="where the model is kept (default: runs/bench)"
    )
    arguments = parser.parse_args()
    bench = Bench(Pipeline(arguments.workdir), requests=1000)
    every = steps(bench, arguments.rate, arguments.rounds, arguments.seconds)
    return run_checks({name: step for name, step in every.items() if arguments.only in (None, name)})


if __name__ == "__main__":
    sys.exit(main())
