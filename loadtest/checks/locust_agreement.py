"""`python -m loadtest.checks.locust_agreement`: Locust against the open-loop harness, same server, same calls, in turn.

Both send what one seed draws, from the same CPU. Medians over rounds of each run's p50 and p99 of Rank. The load must leave
the server idle half of the time. The last line is one JSON object with `ok`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.bench import Bench
from loadtest.checks.check import Check, run_checks
from loadtest.openloop.run import Run, send
from loadtest.openloop.workload import Workload, draw
from loadtest.pipeline import Pipeline
from loadtest.processes import RunningServer
from loadtest.scoreboard.load_rows import APART, CLIENT_CPU, wait_until_warm
from loadtest.swarm.arrivals import BLOCK_S, source_seed
from loadtest.swarm.process import RANK_ONLY, headless
from model.cli.console import note

SEED = 20_261_127
P50_RATIO, P50_MS, P99_RATIO, BUSY = 0.05, 1.0, 0.10, 0.5
WORKLOAD = Workload(rate=40, seconds=BLOCK_S, seed=SEED, users=300, items=400, candidates_mean=40, candidates_max=400)


def agreement(bench: Bench, rate: float, rounds: int) -> Check:
    """Run both in turn, each first in every second round."""
    harness: list[Run] = []
    swarm: list[dict[str, Any]] = []
    with bench.server(APART | {"slots": 1}) as server:
        bench.load(server)
        _harness(server, rate, 0)
        wait_until_warm(server)
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
    figures = {
        "harness_p50_ms": round(ours["p50"], 2),
        "locust_p50_ms": round(theirs["p50"], 2),
        "harness_p99_ms": round(ours["p99"], 2),
        "locust_p99_ms": round(theirs["p99"], 2),
        "server_cpu_share": round(busy, 3),
        "failed": failed,
        "valid_runs": f"{sum(valid)} of {len(valid)}",
        "rate": rate,
        "calls": sum(run.summary["requests"] for run in harness),
        "rounds": rounds,
    }
    p50 = abs(theirs["p50"] - ours["p50"]) <= max(P50_RATIO * ours["p50"], P50_MS)
    p99 = abs(theirs["p99"] / ours["p99"] - 1) <= P99_RATIO
    target = "p50 within max(5 %, 1 ms), p99 within 10 %, the server idle for half of the time, 0 failed"
    return Check("locust_agreement", figures, target, p50 and p99 and busy <= BUSY and failed == 0)


def _workload(rate: float, number: int) -> Workload:
    """The first block of the one source that Locust has in round `number`."""
    return WORKLOAD.model_copy(update={"rate": rate, "seed": source_seed(SEED + number, 0, 1)})


def _harness(server: RunningServer, rate: float, number: int) -> Run:
    return send(server, _workload(rate, number), CLIENT_CPU)


def _swarm(server: RunningServer, rate: float, number: int) -> dict[str, Any]:
    options = {
        "rate-per-user": rate,
        "load-seed": SEED + number,
        "population": WORKLOAD.users,
        "item-count": WORKLOAD.items,
        "candidates-mean": WORKLOAD.candidates_mean,
        "candidates-max": WORKLOAD.candidates_max,
        "call-timeout-ms": WORKLOAD.deadline_ms,
        "max-ranks": len(draw(_workload(rate, number))),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    _, report = headless(server.address, 1, 2 * BLOCK_S, [*arguments, "RankOnly"], RANK_ONLY, cpu=CLIENT_CPU)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.locust_agreement", description=__doc__)
    parser.add_argument("--rate", type=float, default=WORKLOAD.rate, help=f"Ranks per second (default: {WORKLOAD.rate:g})")
    parser.add_argument("--rounds", type=int, default=5, help=f"runs of each, {BLOCK_S:g} s long (default: 5)")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/bench"), help="where the model is kept (default: runs/bench)"
    )
    arguments = parser.parse_args()
    bench = Bench(Pipeline(arguments.workdir), requests=1000)
    return run_checks([lambda: agreement(bench, arguments.rate, arguments.rounds)])


if __name__ == "__main__":
    sys.exit(main())
