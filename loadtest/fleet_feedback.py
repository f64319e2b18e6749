"""Feedback to a fleet as the world sends it: in pieces, shuffled, repeated, to any replica, while the consumer is killed."""

from __future__ import annotations

import random
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from kunlun.client import Client, Outcome
from loadtest.bench import Bench
from loadtest.processes import RunningServer, wait_until
from loadtest.prometheus_process import PrometheusProcess, prometheus
from loadtest.prometheus_text import REPORTED, Sample, scrape, total
from loadtest.store_process import store_process
from model.metrics.normalized_entropy import NEState

BATCH = 20
KILL_AFTER_S = 0.1


@dataclass(frozen=True)
class ReplayedFleet:
    """What a fleet should have counted by task, the replicas that are left, and the Prometheus that watched them all."""

    requests: NDArray[np.int64]
    offline: dict[str, NEState]
    survivors: list[RunningServer]
    impressions: int
    outcomes: int
    rules: PrometheusProcess | None

    def worst_sum(self) -> float:
        """Largest relative difference of a sum, over replicas and tasks."""
        differences: list[float] = [
            abs(total(page, f"kunlun_online_{name}_total", task=task, **REPORTED) - value) / max(abs(value), 1e-12)
            for page in map(metrics_of, self.survivors)
            for task, state in self.offline.items()
            for name, value in vars(state).items()
        ]
        return max(differences)

    def worst_rule(self) -> float:
        """Largest relative difference of a recorded NE, calibration or base rate, once Prometheus has seen all counts."""
        rules = self.rules
        assert rules is not None
        wait_until_scraped(rules, self.offline)
        wanted = {"ne": "normalized_entropy", "calibration": "calibration", "base_rate": "base_rate"}
        differences: list[float] = [
            abs(rules.value(f"kunlun:online_{name}:1h{_reported(task)}") / getattr(state, field) - 1)
            for task, state in self.offline.items()
            for name, field in wanted.items()
        ]
        return max(differences)


@contextmanager
def replayed_fleet(
    bench: Bench, replicas: int, seed: int, *, window: str = "", served_log_rate: float = 0.0
) -> Iterator[ReplayedFleet]:
    """Held-out requests ranked by replicas, all outcomes reported to them, the consumer killed half-way, everything counted.

    `window`: length of the recording rules' window; with it a Prometheus watches.
    """
    replay, rng = bench.replay, random.Random(seed)
    requests = bench.pipeline.held_out(replay.log)[-bench.requests :]
    with fleet(bench, replicas, served_log_rate) as servers, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address, timeout_s=10)) for server in servers]
        bench.load(servers[0], requests)
        rules = None
        if window:
            directory = bench.pipeline.workdir / "prometheus"
            rules = stack.enter_context(prometheus(directory, [server.metrics for server in servers], window))
        events, tasks = replay.events_after(requests), [task.name for task in replay.log.schema.tasks]
        offline, impressions = dict.fromkeys(tasks, NEState()), 0
        reports: list[Outcome] = []
        for number in requests.tolist():
            reply = replay.rank(rng.choice(clients), number)
            outcome, predictions = replay.outcome(number, reply), replay.served(reply)
            labels = replay.log.labels[replay.log.shown(number)]
            for at, task in enumerate(tasks):
                offline[task] += NEState.of(predictions[:, at], labels[:, at])
            reports += in_pieces(outcome)
            impressions += len(outcome.shown)
            if events[number]:
                rng.choice(clients).record_events(events[number])
        reports = shuffled(reports, rng)
        survivors = report_and_kill(servers, clients, reports, rng)
        wait_until_counted(survivors, len(reports))
        yield ReplayedFleet(requests, offline, survivors, impressions, len(reports), rules)


@contextmanager
def fleet(bench: Bench, replicas: int, served_log_rate: float) -> Iterator[list[RunningServer]]:
    """Replicas that share a durable store and a receipt key."""
    with tempfile.TemporaryDirectory() as directory, store_process(Path(directory)) as store, ExitStack() as stack:
        key = Path(directory, "receipt.key")
        key.write_text(secrets.token_hex(16), encoding="ascii")
        settings = {"store": store.url, "receipt_key_file": str(key), "served_log_rate": served_log_rate}
        yield [stack.enter_context(bench.server(settings, name=f"replica{number}")) for number in range(replicas)]


def in_pieces(outcome: Outcome) -> list[Outcome]:
    """One list's outcome as several reports: the impressions in two, every label alone."""
    receipt, half = outcome.receipt, len(outcome.shown) // 2
    parts = [Outcome(receipt, shown=part) for part in (outcome.shown[:half], outcome.shown[half:]) if part]
    return parts + [Outcome(receipt, labels={task: [position]}) for task, own in outcome.labels.items() for position in own]


def shuffled(reports: Sequence[Outcome], rng: random.Random) -> list[Outcome]:
    """In any order, a third of them twice."""
    everything = [*reports, *rng.sample(list(reports), len(reports) // 3)]
    rng.shuffle(everything)
    return everything


def report_to_any(clients: Sequence[Client], reports: Sequence[Outcome], rng: random.Random) -> None:
    """In batches, each to some replica."""
    for start in range(0, len(reports), BATCH):
        rng.choice(clients).report_outcomes(reports[start : start + BATCH])


def report_and_kill(
    servers: Sequence[RunningServer], clients: Sequence[Client], reports: Sequence[Outcome], rng: random.Random
) -> list[RunningServer]:
    """Report everything, and kill the consumer while the second half is under way to the others, which are returned."""
    half, victim = len(reports) // 2, consumer_of(servers)
    report_to_any(clients, reports[:half], rng)
    others = [at for at, server in enumerate(servers) if server is not victim]
    rest = Thread(target=report_to_any, args=([clients[at] for at in others], reports[half:], rng))
    rest.start()
    time.sleep(KILL_AFTER_S)
    victim.kill()
    rest.join()
    return [servers[at] for at in others]


def consumer_of(servers: Iterable[RunningServer], limit_s: float = 20.0) -> RunningServer:
    """The replica that counts the outcomes of all."""
    deadline = time.monotonic() + limit_s
    servers = list(servers)
    while time.monotonic() < deadline:
        for server in servers:
            if total(metrics_of(server), "kunlun_feedback_consumer") == 1:
                return server
        time.sleep(0.1)
    raise TimeoutError(f"no replica became the feedback consumer within {limit_s:g} s")


def metrics_of(server: RunningServer) -> list[Sample]:
    """What a replica exports."""
    return scrape(f"http://{server.metrics}/metrics")


def wait_until_counted(servers: Iterable[RunningServer], outcomes: int, limit_s: float = 60.0) -> None:
    """Until every replica says that as many outcomes have been counted."""
    wait_until(
        lambda: all(total(metrics_of(server), "kunlun_feedback_outcomes_total") >= outcomes for server in servers),
        f"{outcomes} outcomes were not counted",
        limit_s,
    )


def wait_until_scraped(rules: PrometheusProcess, offline: dict[str, NEState]) -> None:
    """Until Prometheus has seen the last counts of everything, and evaluated its rules with them."""

    def is_last(name: str, task: str, value: float) -> bool:
        found = rules.query(f"max(kunlun_online_{name}_total{_reported(task)})")
        return bool(found) and abs(found[0][1] - value) < 0.5

    def scraped() -> bool:
        counts = ("examples", "positives")
        return all(is_last(name, task, getattr(state, name)) for task, state in offline.items() for name in counts)

    wait_until(scraped, "prometheus did not see all counts", 30)
    time.sleep(3)


def _reported(task: str) -> str:
    return f'{{task="{task}", slice="*", maturity="provisional"}}'
