"""Rows of host cost: what a Rank costs the CPU outside the engine (S16)."""

from __future__ import annotations

import os

import redis

from loadtest.bench import Bench
from loadtest.openloop.workload import Workload
from loadtest.scoreboard.figure import Figure, Row
from loadtest.scoreboard.load_rows import APART, SEED, WARM_S, conditions, loaded

CANDIDATES = 256
CALM, SECONDS, LOAD = 25.0, 20.0, 0.7
"""Requests per second of a calm server; length of a run; share of the time that the engine is busy under load."""


def host_cost(bench: Bench) -> Figure:
    """S16: CPU time of the server process, all threads, less the engine's own, per Rank under load; the store's beside it.

    Calm, it is higher: every wake-up finds cold caches.
    """
    base = Workload(
        rate=CALM,
        seconds=WARM_S,
        seed=SEED,
        users=1000,
        candidates_mean=CANDIDATES,
        candidates_max=CANDIDATES,
        event_share=0.2,
        deadline_ms=5000,
    )
    with loaded(bench, APART, base) as at, redis.Redis.from_url(at.server.store) as store:
        calm = at.run(CALM, SECONDS).counted
        store_pid = int(store.info("server")["process_id"])
        store_before = cpu_s(store_pid)
        run = at.run(LOAD / (calm.busy_s / calm.ranks), SECONDS)
        store_s = cpu_s(store_pid) - store_before
    counted = run.counted
    value = 1e3 * (counted.cpu_s - counted.engine_cpu_s) / counted.ranks
    return Figure(
        round(value, 3),
        value <= 1.0,
        {
            "calm_ms": round(1e3 * (calm.cpu_s - calm.engine_cpu_s) / calm.ranks, 3),
            "rate": round(run.workload.rate, 1),
            "candidates": CANDIDATES,
            "ranks": int(counted.ranks),
            "encodes_per_rank": round(counted.encodes / counted.ranks, 2),
            "events_per_rank": base.event_share,
            "store_ms": round(1e3 * store_s / counted.ranks, 3),
            "p50_ms": round(run.summary["latency_ms"]["p50"], 2),
        }
        | conditions(run, at.precision),
    )


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


HOST = (Row("S16", "host CPU time outside the engine per Rank of 256 candidates, ms", "≤ 1", host_cost),)
