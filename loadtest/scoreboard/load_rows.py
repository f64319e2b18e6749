"""Rows under open-loop load: throughput, overload, wasted work, soak, long histories (S1, S2, S4, S11, S17).

Placement on two CPUs: the engine slot alone on CPU 0, everything else (event loop, store, generator) on
CPU 1; for S2 the whole server on CPU 0 and the generator alone on CPU 1. With one CPU nothing is pinned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.bench import Bench
from loadtest.history_fill import fill_histories
from loadtest.labelled import LabelledRequests
from loadtest.offline import OfflineWork, run_offline
from loadtest.openloop.capacity import Capacity, find_capacity
from loadtest.openloop.report import plot_latencies
from loadtest.openloop.run import Run, send
from loadtest.openloop.workload import Workload, draw
from loadtest.processes import RunningServer
from loadtest.prometheus_text import scrape, total
from loadtest.scoreboard.figure import Figure, Row
from model.cli.console import note
from serving.config import available_cpus
from serving.engines.openvino_engine import resolve_precision

SEED = 20_261_124
RUN_S, WARM_S = 10.0, 8.0
CALM_RATE = 50.0
SERVICE_TIMES = 50
"""S1: the latency bound in mean service times."""

SOAK_CACHE_MB = 4
"""S11: room for half of the users' states."""

STEP, MOST_STEPS = 1.2, 12
"""S2: growth of the rate while the peak is searched."""

MANY = available_cpus() > 1
APART: dict[str, Any] = {"host_cpus": [1], "core": {"slot_cpus": [0]}} if MANY else {"core": {}}
TOGETHER: dict[str, Any] = {"host_cpus": [0], "core": {"slot_cpus": [0]}} if MANY else {"core": {}}
CLIENT_CPU = 1 if MANY else None


@dataclass
class Loaded:
    """A server with a full store, one slot of one thread, and how fast the engine alone would be."""

    bench: Bench
    server: RunningServer
    precision: str
    base: Workload
    seeds: Iterator[int]

    def device_peak_flops(self) -> float:
        """Matrix-product peak of one slot, as the server tells it."""
        return total(scrape(f"http://{self.server.metrics}/metrics"), "kunlun_device_peak_flops")

    def run(self, rate: float, seconds: float = RUN_S, *, keep_replies: bool = False, **changes: Any) -> Run:
        """One run of the base workload at `rate` with `changes`."""
        given = {"rate": rate, "seconds": seconds, "seed": next(self.seeds)} | changes
        return send(self.server, self.base.model_copy(update=given), CLIENT_CPU, keep_replies=keep_replies)


@contextmanager
def loaded(
    bench: Bench, placement: dict[str, Any], base: Workload | None = None, precision: str = "auto", **core: Any
) -> Iterator[Loaded]:
    """The `small` model served with the log's histories in its store, and its user-state cache warm."""
    small = bench.small
    settings = placement | {"slots": 1, "precision": precision, "core": placement["core"] | core}
    with small.server(settings) as server:
        small.load(server)
        workload = base or Workload(rate=40, seconds=WARM_S, seed=SEED, users=1000, event_share=0.2, deadline_ms=5000)
        made = Loaded(small, server, precision, workload, iter(range(SEED, SEED + 10_000)))
        made.run(100, 20.0, user_zipf=0.0, candidates_mean=8, candidates_max=8, event_share=0.0)  # 86 % of users have a state
        made.run(40, WARM_S)
        wait_until_warm(server)
        yield made


def wait_until_warm(server: RunningServer) -> None:
    """Until the server has run every tensor shape: compiling them beside the load is no part of any row."""
    deadline = time.monotonic() + 120
    while total(scrape(f"http://{server.metrics}/metrics"), "kunlun_engine_cold_shapes") > 0:
        if time.monotonic() > deadline:
            raise TimeoutError("the server has not run all tensor shapes within 120 s")
        time.sleep(0.2)


def offline_rate(at: Loaded, cpu: int | None) -> tuple[float, float]:
    """Requests per second of the engine alone on the base workload's requests, and its share of the peak."""
    seen = at.run(40, WARM_S)
    plan = draw(at.base.model_copy(update={"rate": 100, "seconds": RUN_S, "seed": SEED}))
    work = OfflineWork(
        tuple(plan.candidates.tolist()), seen.counted.encodes / max(1.0, seen.counted.ranks), at.bench.level_shares(plan.user)
    )
    result = run_offline(at.bench, work, precision=at.precision, cpu=cpu)
    note(
        f"offline: {result.requests_per_s:.1f} requests/s, {result.useful_flops_per_s / 1e9:.0f} of "
        f"{result.device_peak_flops / 1e9:.0f} GFLOP/s, {work.encodes_per_request:.2f} encodes per request"
    )
    return result.requests_per_s, result.useful_flops_per_s / result.device_peak_flops


def capacity_under(at: Loaded, bound_ms: float, guess: float, runs: list[Run], **changes: Any) -> Capacity:
    """The highest rate at which at most 1 % of requests take longer than `bound_ms`."""

    def misses(rate: float, _: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        run = at.run(rate, deadline_ms=4 * bound_ms, **changes)
        runs.append(run)
        sample = run.sample
        return sample.at, ~(sample.answered & (sample.latency_s * 1e3 <= bound_ms))

    return find_capacity(misses, guess, note=note)


def server_vs_offline(bench: Bench) -> Figure:
    """S1."""
    with loaded(bench, APART, degrade=False) as at:
        offline, mfu = offline_rate(at, 0 if MANY else None)
        bound_ms = SERVICE_TIMES * 1e3 / offline
        runs: list[Run] = []
        found = capacity_under(at, bound_ms, 0.85 * offline, runs)
        best = min(runs, key=lambda run: abs(run.workload.rate - found.rate))
    plot_latencies(
        {f"{run.workload.rate:.0f}/s": run.sample for run in _one_per_rate(runs)},
        at.bench.pipeline.workdir / "s1.png",
        bound_ms,
    )
    value = found.rate / offline
    return Figure(
        round(value, 3),
        value >= 0.90,
        {
            "requests_per_s": round(found.rate, 1),
            "offline_per_s": round(offline, 1),
            "fails_at": round(found.fails_at, 1),
            "p99_bound_ms": round(bound_ms, 1),
            "engine_busy": round(best.counted.busy_s / best.workload.seconds, 3),
            "mfu_busy_offline": round(mfu, 3),
        }
        | conditions(best, at.precision),
    )


def goodput_under_overload(bench: Bench) -> Figure:
    """S2, without the ladder: goodput at 2× and 4× over its peak; with it, at 2×: answers in time and NE lost."""
    figures: dict[str, Any] = {}
    with loaded(bench, TOGETHER, degrade=False) as at:
        guess = 1.0 / (at.run(40).counted.busy_s / 40 / RUN_S)
        deadline_ms = 40 * 1e3 / guess
        peak, peak_rate, last, rate = 0.0, 0.0, None, 0.7 * guess
        for _ in range(MOST_STEPS):
            run = at.run(rate, deadline_ms=deadline_ms)
            goodput = run.summary["goodput_per_s"]
            note(f"{rate:6.1f}/s: goodput {goodput:.1f}/s")
            if goodput > peak:
                peak, peak_rate = goodput, rate
            elif goodput < 0.9 * rate:
                break
            rate *= STEP
        over = {}
        for factor in (2, 4):
            last = at.run(factor * peak, deadline_ms=deadline_ms)
            over[factor] = last.summary["goodput_per_s"] / peak
            note(f"{factor}×: goodput {over[factor]:.3f} of the peak, {last.summary['statuses']}")
        assert last is not None
        figures |= {
            "peak_per_s": round(peak, 1),
            "peak_at_rate": round(peak_rate, 1),
            "goodput_2x": round(over[2], 3),
            "goodput_4x": round(over[4], 3),
            "deadline_ms": round(deadline_ms),
        } | conditions(last, at.precision)
    ladder = ladder_at_twice(bench, deadline_ms)
    value = min(over.values())
    ok = value >= 0.95 and ladder["ladder_in_time"] == 1.0 and ladder["ladder_ne_loss"] <= 0.005
    return Figure(round(value, 3), ok, figures | ladder)


def ladder_at_twice(bench: Bench, deadline_ms: float) -> dict[str, Any]:
    """Labelled requests at twice the rate the server can answer in full, degrading allowed."""
    small = bench.small
    requests = LabelledRequests.from_log(small, count=1200, seed=SEED)
    patient = {"degrade": False, "max_queue": 2 * len(requests.messages)}
    with small.server(TOGETHER | {"slots": 1, "core": TOGETHER["core"] | patient}) as server:
        small.load(server, requests.numbers)
        requests.send(server, CALM_RATE, CLIENT_CPU, deadline_ms=60_000)  # states and caches
        full = requests.send(server, 2000, CLIENT_CPU, deadline_ms=60_000)  # all at once, as it were
        capacity = len(requests.messages) / float(np.nanmax(full.sample.at + full.sample.latency_s))
    with small.server(TOGETHER | {"slots": 1}) as server:
        small.load(server, requests.numbers)
        requests.send(server, CALM_RATE, CLIENT_CPU, deadline_ms=60_000)
        over = requests.send(server, 2 * capacity, CLIENT_CPU, deadline_ms=deadline_ms)
    ne = requests.normalized_entropy(over.replies, full.replies)
    ne_full = requests.normalized_entropy(full.replies, over.replies)
    in_time = over.summary["in_time"] / over.summary["requests"]
    note(f"ladder at 2× ({2 * capacity:.0f}/s): {in_time:.2%} in time, NE {ne_full:.4f} → {ne:.4f}, {over.summary['rungs']}")
    return {
        "ladder_rate": round(2 * capacity, 1),
        "ladder_in_time": round(in_time, 4),
        "ladder_ne_loss": round(ne / ne_full - 1, 4),
        "ladder_ne_full": round(ne_full, 4),
        "ladder_rungs": over.summary["rungs"],
    }


def wasted_work(bench: Bench) -> Figure:
    """S4."""
    with loaded(bench, APART, degrade=False) as at:
        rate = 1.2 / (at.run(40).counted.busy_s / 40 / RUN_S)
        run = at.run(rate, 20.0, deadline_ms=300, cancel_share=0.3, hurried_share=0.3, hurried_ms=20)
    value = run.counted.wasted_s / run.counted.busy_s
    figures = {"busy_s": round(run.counted.busy_s, 2), "statuses": run.summary["statuses"]}
    return Figure(round(value, 5), value <= 0.01, figures | conditions(run, at.precision))


def soak(bench: Bench) -> Figure:
    """S11: straight lines through latency and resident memory over windows; their slopes against their errors.

    The cache of user states is made so small that it is full before the first window: one that fills is no leak,
    one that is full must not leak in what it drops.
    """
    with loaded(bench, APART, user_state_cache_mb=SOAK_CACHE_MB) as at:
        rate = 0.5 / (at.run(40).counted.busy_s / 40 / RUN_S)
        at.run(rate, 120.0)
        window_s = max(5.0, bench.soak_s / 40)
        medians, memory = [], []
        for number in range(round(bench.soak_s / window_s)):
            run = at.run(rate, window_s)
            medians.append(run.summary["latency_ms"]["p50"])
            memory.append(resident_bytes(at.server.pid) / 1e6)
            note(f"{number * window_s:5.0f} s: p50 {medians[-1]:.2f} ms, {memory[-1]:.1f} MB")
    latency, rss = slope(medians), slope(memory)
    drift = max(abs(latency[0]) / latency[1], abs(rss[0]) / rss[1])
    growth = rss[0] * len(memory) / memory[0]
    return Figure(
        round(drift, 2),
        drift <= 2.0,
        {
            "seconds": bench.soak_s,
            "p50_ms_per_window": f"{latency[0]:.4f} ± {latency[1]:.4f}",
            "rss_mb_per_window": f"{rss[0]:.4f} ± {rss[1]:.4f}",
            "rss_growth": f"{growth:.2%}",
        }
        | conditions(run, at.precision),
    )


def history_is_free(bench: Bench) -> Figure:
    """S17: the same load on users with 1,000 events and with 50, encode on write; how fresh the states were."""
    p99, fresh, last = {}, {}, None
    for length in (50, 1000):
        base = Workload(rate=30, seconds=WARM_S, seed=SEED, users=200, event_share=0.2, deadline_ms=5000)
        with loaded_histories(bench, base, length) as at:
            rate = 20.0
            at.run(rate, 20.0)
            last = at.run(rate, 60.0)
            p99[length], fresh[length] = last.summary["latency_ms"]["p99"], freshness(last)
            note(f"histories of {length}: {last.summary['latency_ms']}, fresh {fresh[length]:.2%}")
    assert last is not None
    value, share = p99[1000] / p99[50], min(fresh.values())
    figures = {"p99_ms_50": round(p99[50], 2), "p99_ms_1000": round(p99[1000], 2), "fresh_share": round(share, 4)}
    return Figure(round(value, 3), value <= 1.05 and share >= 0.99, figures | conditions(last, at.precision))


@contextmanager
def loaded_histories(bench: Bench, base: Workload, length: int) -> Iterator[Loaded]:
    """A server whose users all have histories of `length` clicks, states encoded."""
    small = bench.small
    with small.server(APART | {"slots": 1}) as server:
        fill_histories(small, server, users=base.users, length=length)
        made = Loaded(small, server, "auto", base, iter(range(SEED, SEED + 10_000)))
        made.run(30, WARM_S, user_zipf=0.0)
        wait_until_warm(server)
        yield made


def freshness(run: Run) -> float:
    """Share of answered Ranks whose state lacked no event acknowledged more than a second before they were sent."""
    sample = run.sample
    acknowledged = [
        (user, ack, event)
        for user, ack, event in zip(
            sample.user.tolist(), sample.acknowledged_ms.tolist(), sample.event_ms.tolist(), strict=True
        )
        if ack == ack
    ]
    by_user: dict[int, list[tuple[float, float]]] = {}
    for user, ack, event in acknowledged:
        by_user.setdefault(user, []).append((ack, event))
    good = total = 0
    for n in np.flatnonzero(sample.answered).tolist():
        sent_ms = sample.began_ms + sample.sent[n] * 1e3
        due = [event for ack, event in by_user.get(int(sample.user[n]), []) if ack <= sent_ms - 1000]
        total += 1
        good += not due or sample.newest_event_ms[n] >= max(due) - 50  # clocks of two processes, in ms
    return good / max(1, total)


def slope(values: list[float]) -> tuple[float, float]:
    """Least-squares slope per step and its standard error, never quite zero, so that it can be divided by.

    The error is widened for noise that stays for a while (a busy neighbour on the machine), by the correlation of
    neighbouring residuals, as for an autoregressive process of order one: √((1 + φ) / (1 − φ)).
    """
    y = np.array(values)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    spread = float((x * x).sum())
    found = float((x * y).sum()) / spread
    residual = y - y.mean() - found * x
    squares = float((residual**2).sum())
    alike = float((residual[1:] * residual[:-1]).sum()) / max(squares, 1e-18)
    phi = min(0.9, max(0.0, (len(y) * alike + 1) / (len(y) - 3)))  # less its bias in short series
    return found, max(1e-9, float(np.sqrt(squares / (len(y) - 2) / spread * (1 + phi) / (1 - phi))))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def conditions(run: Run, precision: str) -> dict[str, Any]:
    """What a reader needs to repeat and to doubt a run."""
    return {
        "model": "small",
        "precision": resolve_precision(precision) if precision != "each" else precision,
        "slots": "1x1",
        "client_cpu": round(run.summary["client_cpu_share"], 2),
        "client_lag_p99_ms": round(run.summary["send_lag_p99_ms"], 1),
        "seed": run.workload.seed,
    }


def _one_per_rate(runs: list[Run]) -> list[Run]:
    return list({round(run.workload.rate): run for run in sorted(runs, key=lambda r: r.workload.rate)}.values())


LOAD = (
    Row("S1", "server ÷ offline throughput, p99 ≤ 50 × mean service time", "≥ 0.90", server_vs_offline),
    Row(
        "S2",
        "goodput at 2× and 4× overload ÷ peak; with the ladder at 2× all in time, NE loss ≤ 0.5 %",
        "≥ 0.95",
        goodput_under_overload,
    ),
    Row("S4", "engine time begun after cancellation or deadline ÷ busy time", "≤ 1 %", wasted_work),
    Row("S11", "soak: slope of latency or RSS ÷ its standard error, the larger", "≤ 2", soak),
    Row("S17", "p99 with histories of 1,000 ÷ with 50; states ≤ 1 s behind ≥ 99 %", "≤ 1.05", history_is_free),
)
