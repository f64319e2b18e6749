"""What is done behind a balancer, as a table: how many replicas, what they are told, what must hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.balancer import envoy, haproxy
from loadtest.balancer.figures import wait_until_taken_in
from loadtest.balancer.in_turn import SHUTDOWN_DELAY_S, killed_replica, rolling_restart
from loadtest.balancer.new_replica import new_replica, new_replica_by_connection
from loadtest.balancer.replicas import FEW_SHAPES, Replica, replica_set, start_all
from loadtest.balancer.slow_replica import slow_replica
from loadtest.balancer.throttled_replica import throttled_replica
from loadtest.balancer.traffic import Source
from loadtest.balancer.user_affinity import user_affinity
from loadtest.bench import Bench
from loadtest.openloop.workload import Workload

CONNECTION_AGE_S = 10.0
SEED = 20_261_126
CACHE_MB = 0.6
"""Room for about half of the users' states in one replica."""

WORKLOAD = Workload(rate=50, seconds=10, seed=SEED, users=300, items=400, candidates_mean=8, candidates_max=20)
"""Light: calls are counted here, not weighed."""

Figures = dict[str, Any]
BALANCERS: Mapping[str, Callable[[Path, Sequence[str]], Any]] = {"Envoy": envoy.envoy, "HAProxy": haproxy.haproxy}
VERSIONS: Mapping[str, Callable[[], str | None]] = {"Envoy": envoy.version, "HAProxy": haproxy.version}
"""None: it is not installed."""


@dataclass(frozen=True)
class Scenario:
    """`run` with a balancer before `replicas` replicas, of which `spare` are not started; `holds`: what `target` says.

    `settings`: keys of `ServerConfig`, over those of all; `events`: share of calls that are followed by an event of their user;
    `only`: the one balancer it is about; another scenario may promise less, by the same name, of the other one.
    """

    name: str
    target: str
    run: Callable[[Any, Sequence[Replica], Source, int, float], Figures]
    holds: Callable[[Figures], bool]
    replicas: int = 3
    spare: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    events: float = 0.0
    only: str = ""

    def measure(self, bench: Bench, balancer: str, calls: int, rate: float) -> Figures:
        """Figures of one run of `calls` calls at `rate` per second."""
        source = Source(WORKLOAD.model_copy(update={"event_share": self.events}))
        with behind(balancer, config_of(bench) | dict(self.settings), self.replicas, self.spare) as (running, replicas):
            return self.run(running, replicas, source, calls, rate)


def config_of(bench: Bench) -> dict[str, Any]:
    """What every replica serves, and how."""
    bench.build()
    return {
        "repository": bench.pipeline.models,
        "default_deadline_ms": 30_000,
        "front_end": bench.front_end,
        "shutdown_delay_s": SHUTDOWN_DELAY_S,
        "core": FEW_SHAPES,
    }


@contextmanager
def behind(balancer: str, config: Mapping[str, Any], count: int, spare: int = 0) -> Iterator[tuple[Any, list[Replica]]]:
    """A balancer before `count` replicas; all but the last `spare` are up and get calls."""
    with tempfile.TemporaryDirectory(prefix="kunlun-balancer-") as directory:
        workdir = Path(directory)
        with (
            replica_set(config, count, workdir) as replicas,
            BALANCERS[balancer](workdir / "balancer", [replica.address for replica in replicas]) as running,
        ):
            up = replicas[: count - spare]
            start_all(up)
            wait_until_taken_in(running, up)
            yield running, replicas


def _none_failed(figures: Figures) -> bool:
    return bool(figures["failed"] == 0)


def _joined(figures: Figures) -> bool:
    share_s = figures["share_after_s"]
    return _none_failed(figures) and share_s is not None and share_s <= CONNECTION_AGE_S


AGE = {"max_connection_age_s": CONNECTION_AGE_S}
WITHIN_AGE = f"0 failed, its share within {CONNECTION_AGE_S:g} s"
SCENARIOS = (
    Scenario("rolling_restart", "0 failed", rolling_restart, lambda f: _none_failed(f) and f["restarts"] >= 2, replicas=2),
    Scenario("killed_replica", "calls repeated, 0 failed", killed_replica, lambda f: _none_failed(f) and f["repeated"] > 0),
    Scenario(
        "slow_replica", "0 failed, ejected within 5 s", slow_replica, lambda f: _none_failed(f) and f["ejected_after_s"] <= 5
    ),
    Scenario(
        "throttled_replica",
        "0 failed, ejected for its calls",
        throttled_replica,
        lambda f: _none_failed(f) and f["ejected_after_s"] is not None and f["ejections"] > 0,
        only="Envoy",
    ),
    Scenario("throttled_replica", "0 failed", throttled_replica, _none_failed, only="HAProxy"),
    Scenario(
        "new_replica",
        WITHIN_AGE,
        new_replica,
        _joined,
        spare=1,
        settings=AGE,
    ),
    Scenario(
        "new_replica_by_connection",
        WITHIN_AGE,
        new_replica_by_connection,
        _joined,
        spare=1,
        settings=AGE,
        only="HAProxy",
    ),
    Scenario(
        "user_affinity",
        "0 failed, more hits by user than by load",
        user_affinity,
        lambda f: f["by_user"]["failed"] == f["by_load"]["failed"] == 0 and f["by_user"]["hit_rate"] > f["by_load"]["hit_rate"],
        settings={"core": FEW_SHAPES | {"user_state_cache_mb": CACHE_MB}},
        events=0.2,
    ),
)
