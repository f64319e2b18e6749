"""Rows behind a balancer: replicas are restarted in turn while calls come, and none may fail (S9)."""

from __future__ import annotations

import time

from loadtest.balancer.scenario import SCENARIOS, SEED, VERSIONS
from loadtest.bench import Bench
from loadtest.scoreboard.figure import Figure, Row
from model.cli.console import note

CALLS, RATE = 101_000, 75.0
"""A Poisson count of that mean is above 10⁵ but in one of a thousand runs."""

HAPROXY_CALLS = 10_000


def rolling_restart_drops_nothing(bench: Bench) -> Figure:
    """S9: Envoy's count is the row's; HAProxy's stands beside it, over fewer calls."""
    [scenario] = [s for s in SCENARIOS if s.name == "rolling_restart"]
    versions = {name: version() for name, version in VERSIONS.items()}
    found = scenario.measure(bench, "Envoy", CALLS, RATE)
    note(f"Envoy: {found}")
    ok = scenario.holds(found) and found["calls"] >= 100_000
    beside = scenario.measure(bench, "HAProxy", HAPROXY_CALLS, RATE) if versions["HAProxy"] else "not verified: not installed"
    conditions = {name: value for name, value in found.items() if name != "failed"}
    conditions |= {"replicas": scenario.replicas, "rate": RATE, "seed": SEED, "date": time.strftime("%Y-%m-%d")}
    return Figure(found["failed"], ok, conditions | {"versions": versions, "haproxy": beside})


BALANCER = (
    Row("S9", "calls that fail in a rolling restart behind Envoy, each sent once", "0 of ≥ 10⁵", rolling_restart_drops_nothing),
)
