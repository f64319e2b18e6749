"""Work-aware scheduling against request-count batching, on the same engine slot in one process (S7)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from loadtest.baselines.fifo_padded import FifoPadded
from loadtest.bench import Bench
from loadtest.openloop.capacity import find_capacity
from loadtest.openloop.workload import Workload, draw
from loadtest.scoreboard.figure import Figure, Row
from loadtest.scoreboard.load_rows import MANY, SEED, SERVICE_TIMES
from model.artifact import open_artifact
from model.cli.console import note
from model.flops import FlopModel
from serving.config import ServerConfig, artifact_path
from serving.core.host_features import HostFeatures, ScoreInputs
from serving.core.options import CoreOptions
from serving.core.scheduler import Scheduler
from serving.engines.cache import default_cache
from serving.engines.open import open_engine
from serving.metrics.serving_metrics import ServingMetrics

SLOT_CPU = 0 if MANY else None
PRECISION = "auto"
RUN_S, TOLERANCE = 8.0, 0.08
Score = Callable[[ScoreInputs, int, float], Awaitable[object]]


def work_aware_vs_fifo(bench: Bench) -> Figure:
    """S7: scoring alone, heavy-tailed candidates; the user states are at hand for both."""
    small = bench.small
    small.build()
    artifact = open_artifact(artifact_path(ServerConfig(repository=small.pipeline.workdir / "models")))
    engine = open_engine(artifact, cache=default_cache(artifact), precision=PRECISION, threads_per_slot=1, slots=1)
    host, flops = HostFeatures(artifact), FlopModel.from_json(artifact.manifest.flops, artifact.config)
    zeros = host.zeros(host.score_signature, {"R": 1, "C": 1024})
    state = {name: zeros[name] for name in host.states}
    context = {name: rows for name, rows in zeros.items() if name.startswith("context_")}
    items = {name: rows for name, rows in zeros.items() if name.startswith("item_")}

    def inputs(candidates: int) -> ScoreInputs:
        return ScoreInputs(context, {name: rows[:candidates] for name, rows in items.items()}, 0)

    async def main() -> Figure:
        fifo = FifoPadded(engine, host, SLOT_CPU)
        await fifo.start()
        ours = Scheduler(
            engine, host, flops, CoreOptions(slots=1, slot_cpus=() if SLOT_CPU is None else (SLOT_CPU,)), ServingMetrics()
        )
        await ours.start()
        while ours.cold_shapes:  # noqa: ASYNC110  compiling them beside the load is no part of this row
            await asyncio.sleep(0.1)

        def with_fifo(given: ScoreInputs, candidates: int, _: float) -> Awaitable[object]:
            return fifo.score(given, state, candidates)

        def with_ours(given: ScoreInputs, candidates: int, now: float) -> Awaitable[object]:
            urgency = ours.urgency(now, now + 10.0, ours.score_s(candidates))
            return ours.score_job(given, state, candidates, urgency).result

        sizes = draw(Workload(rate=100, seconds=100, seed=SEED)).candidates
        service_s = float(np.mean([ours.score_s(int(size)) for size in sizes]))
        bound_s = SERVICE_TIMES * service_s
        loop = asyncio.get_running_loop()

        async def capacity(score: Score, guess: float) -> float:
            def misses(rate: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
                run = asyncio.run_coroutine_threadsafe(_latencies(score, inputs, rate, seed), loop).result()
                return run[0], run[1] > bound_s

            return (await asyncio.to_thread(find_capacity, misses, guess, tolerance=TOLERANCE, runs=2, note=note)).rate

        base = await capacity(with_fifo, 0.5 / service_s)
        best = await capacity(with_ours, 1.5 * base)
        p99 = {}
        for name, score in (("fifo", with_fifo), ("ours", with_ours)):
            runs = [(await _latencies(score, inputs, 0.8 * base, seed))[1] for seed in range(4)]
            p99[name] = float(np.quantile(np.concatenate(runs), 0.99))
        await fifo.close()
        await ours.close()
        ratio, gain = p99["ours"] / p99["fifo"], best / base
        return Figure(
            round(ratio, 3),
            ratio <= 0.5 and gain >= 1.3,
            {
                "capacity_ratio": round(gain, 2),
                "capacity_fifo_per_s": round(base, 1),
                "capacity_ours_per_s": round(best, 1),
                "p99_fifo_ms": round(p99["fifo"] * 1e3, 1),
                "p99_ours_ms": round(p99["ours"] * 1e3, 1),
                "mean_service_ms": round(service_s * 1e3, 2),
                "model": "small",
                "precision": engine.precision,
                "seed": SEED,
            },
        )

    return asyncio.run(main())


async def _latencies(
    score: Score, inputs: Callable[[int], ScoreInputs], rate: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One open-loop run: scheduled times and latencies from them, seconds."""
    plan = draw(Workload(rate=rate, seconds=RUN_S, seed=SEED + seed))
    latency = np.zeros(len(plan))
    start = time.monotonic() + 0.1

    async def one(number: int) -> None:
        scheduled = start + plan.at[number]
        candidates = int(plan.candidates[number])
        await score(inputs(candidates), candidates, scheduled)
        latency[number] = time.monotonic() - scheduled

    tasks = []
    for number, at in enumerate(plan.at.tolist()):
        if (wait := start + at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return plan.at, latency


SCHEDULING = (
    Row(
        "S7",
        "p99 of work-aware scheduling ÷ FIFO padded batches at 80 % of the latter's capacity; capacity ratio ≥ 1.3",
        "≤ 0.5",
        work_aware_vs_fifo,
    ),
)
