"""Feedback to a fleet as the world sends it: in pieces, shuffled, repeated, to any replica, while the consumer is killed."""

from __future__ import annotations

import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kunlun.client import Client, Outcome
from loadtest.bench import Bench
from loadtest.processes import RunningServer
from loadtest.prometheus_text import Sample, scrape, total
from loadtest.store_process import store_process

BATCH = 20


@contextmanager
def fleet(bench: Bench, replicas: int) -> Iterator[list[RunningServer]]:
    """Replicas that share a durable store and a receipt key."""
    with tempfile.TemporaryDirectory() as directory, store_process(Path(directory)) as store, ExitStack() as stack:
        key = Path(directory, "receipt.key")
        key.write_text(secrets.token_hex(16), encoding="ascii")
        settings = {"store": store.url, "receipt_key_file": str(key)}
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


def wait_until(condition: Callable[[], bool], else_say: str, limit_s: float) -> None:
    """Wait for something that must come; raises `TimeoutError`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{else_say} within {limit_s:g} s")
        time.sleep(0.1)
