"""Runs the generator as a pinned child process, and reads what the server counted meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kunlun.v1 import ranker_pb2
from loadtest.openloop.generator import Sample
from loadtest.openloop.messages import read_messages
from loadtest.openloop.workload import Workload
from loadtest.processes import RunningServer
from loadtest.prometheus_text import scrape, total

_runs = itertools.count()
SLACK_S = 120.0


@dataclass(frozen=True)
class Counters:
    """What a server has counted so far."""

    ranks: float
    encodes: float
    scored: float
    busy_s: float
    engine_cpu_s: float
    wasted_s: float
    useful_flops: float
    executed_flops: float
    cpu_s: float
    rss_bytes: float

    def __sub__(self, other: Counters) -> Counters:
        return Counters(**{name: value - getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Run:
    """One finished run: the generator's summary and sample, the server's counters over it, and the replies if kept."""

    workload: Workload
    summary: dict[str, Any]
    sample: Sample
    counted: Counters
    replies: tuple[ranker_pb2.RankResponse | None, ...] = ()


def counters(server: RunningServer) -> Counters:
    """Read the server's metrics."""
    samples = scrape(f"http://{server.metrics}/metrics")
    return Counters(
        ranks=total(samples, "kunlun_rank_rungs_total"),
        encodes=total(samples, "kunlun_engine_rows_total", graph="encode_user"),
        scored=total(samples, "kunlun_engine_rows_total", graph="score_candidates"),
        busy_s=total(samples, "kunlun_engine_busy_seconds_total"),
        engine_cpu_s=total(samples, "kunlun_engine_cpu_seconds_total"),
        wasted_s=total(samples, "kunlun_wasted_engine_seconds_total"),
        useful_flops=total(samples, "kunlun_engine_useful_flops_total"),
        executed_flops=total(samples, "kunlun_engine_executed_flops_total"),
        cpu_s=total(samples, "process_cpu_seconds_total"),
        rss_bytes=total(samples, "process_resident_memory_bytes"),
    )


def send(
    server: RunningServer,
    workload: Workload,
    cpu: int | None = None,
    *,
    keep_replies: bool = False,
    messages: Path | None = None,
) -> Run:
    """Send one run from a process pinned to `cpu`; `messages`: requests to send in place of the workload's own."""
    before = counters(server)
    summary, sample, replies = generate(server.address, workload, cpu, keep_replies=keep_replies, messages=messages)
    return Run(workload, summary, sample, counters(server) - before, replies)


def generate(
    address: str,
    workload: Workload,
    cpu: int | None = None,
    *,
    keep_replies: bool = False,
    messages: Path | None = None,
    channels: int = 1,
    started: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> tuple[dict[str, Any], Sample, tuple[ranker_pb2.RankResponse | None, ...]]:
    """The same to any address, a balancer's perhaps: the generator's summary and sample, and the replies if kept.

    `started` is told the process, which SIGTERM ends early and in order.
    """
    with tempfile.TemporaryDirectory(prefix="kunlun-load-") as directory:
        sample, replies = Path(directory, "sample.npz"), Path(directory, "replies.bin")
        command = [sys.executable, "-m", "loadtest.openloop", "--server", address]
        command += ["--workload", workload.model_dump_json(), "--output", str(sample)]
        command += ["--event-prefix", f"{os.getpid()}-{time.time_ns()}-{next(_runs)}"]
        command += ["--channels", str(channels)]
        command += [] if cpu is None else ["--cpu", str(cpu)]
        command += ["--replies", str(replies)] if keep_replies else []
        command += [] if messages is None else ["--messages", str(messages)]
        limit_s = workload.seconds + SLACK_S + workload.deadline_ms / 1e3
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            started(process)
            try:
                output, _ = process.communicate(timeout=limit_s)
            finally:
                process.kill()  # if it still runs
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command, output)
        summary = json.loads(output.strip().splitlines()[-1])
        parsed = tuple(_read_replies(replies)) if keep_replies else ()
        return summary, Sample.load(sample), parsed


def _read_replies(path: Path) -> list[ranker_pb2.RankResponse | None]:
    return [ranker_pb2.RankResponse.FromString(message) if message else None for message in read_messages(path)]
