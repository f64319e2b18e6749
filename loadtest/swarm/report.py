"""The end of a run: service-level objectives decide the exit status; the last line of standard output is one JSON object."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from locust.env import Environment
from locust.stats import StatsEntry

from loadtest.openloop.capacity import Capacity
from loadtest.openloop.generator import LATE_MS
from loadtest.swarm.measures import Measures
from loadtest.swarm.rows import GRPC, SEND_LAG, STAGE

QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}


def report(environment: Environment, measures: Measures, capacity: Capacity | None = None) -> dict[str, Any]:
    """What was measured, the objectives, and `ok`; a search for `capacity` is meant to miss them on its way.

    Not `valid`: the generator was late itself, which its latencies contain, so objectives that are met all the same are met.
    """
    options: Any = environment.parsed_options
    entries = environment.stats.entries
    calls = {name: _figures(entry) for (name, kind), entry in entries.items() if kind == GRPC}
    stages = {name: _figures(entry) for (name, kind), entry in entries.items() if kind == STAGE and name != SEND_LAG}
    lag = entries[(SEND_LAG, STAGE)].get_response_time_percentile(0.99)
    sent = sum(call["calls"] for call in calls.values())
    failed = sum(call["failed"] for call in calls.values())
    rank = calls.get("Rank", {})
    targets, found = dict[str, float](), dict[str, float | None]()
    if capacity is None:
        targets["failed_share"], found["failed_share"] = options.slo_failed, failed / max(1, sent)
        for name, bound in (("p50_ms", options.slo_p50_ms), ("p99_ms", options.slo_p99_ms)):
            if bound:
                targets[f"rank_{name}"], found[f"rank_{name}"] = bound, rank.get(name)
    missed = [name for name, bound in targets.items() if (value := found[name]) is None or value > bound]
    ok = not missed and not measures.faults and sent > 0
    line: dict[str, Any] = {"ok": ok, "missed": missed, "faults": dict(measures.faults), "calls": calls, "stages": stages}
    line["errors"] = {f"{e.name}: {e.error}": e.occurrences for e in environment.stats.errors.values()}
    line |= {"send_lag_p99_ms": lag, "valid": lag <= LATE_MS}
    if measures.served.examples:
        line["clicks"] = {
            "impressions": int(measures.served.examples),
            "clicked": int(measures.served.positives),
            "ne_served": _rounded(measures.served.normalized_entropy, 6),
            "ne_truth": _rounded(measures.truth.normalized_entropy, 6),
            "calibration": _rounded(measures.served.calibration, 4),
        }
    if capacity is not None:
        line["capacity"] = {"rate": _rounded(capacity.rate, 1), "fails_at": _rounded(capacity.fails_at, 1)}
    return line | {"figures": found, "targets": targets}


def write_report(line: dict[str, Any], file: str) -> None:
    """To standard output, and to `file` unless it is empty."""
    text = json.dumps(line)
    if file:
        Path(file).write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _rounded(value: float, digits: int) -> float | None:
    """None where there is no number: JSON has none for it."""
    return round(value, digits) if math.isfinite(value) else None


def _figures(entry: StatsEntry) -> dict[str, Any]:
    quantiles = {name: float(entry.get_response_time_percentile(q)) for name, q in QUANTILES.items()}
    return {"calls": entry.num_requests, "failed": entry.num_failures, **quantiles}
