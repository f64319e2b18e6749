"""Parts of the Locust load that need no Locust process: arrivals, shapes, the truth about clicks, sums over workers."""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from protocol_server import protocol_server

from kunlun.client import Client
from loadtest.openloop.capacity import Capacity, find_capacity
from loadtest.openloop.workload import Workload
from loadtest.swarm.arrivals import arrivals, block_seconds
from loadtest.swarm.measures import Measures, three_figures
from loadtest.swarm.population import Population
from loadtest.swarm.shapes import check_sent, in_whole_users, misses_between, ramp_level, spike_level
from model.data.synthetic import CART, CLICK, synthetic_schema
from model.data.synthetic_world import SyntheticConfig

WORLD = SyntheticConfig(seed=3, users=50, items=60, min_shown=5, max_shown=10)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The parts of a synthetic log that tell its world."""
    source = {"kind": "synthetic", "parameters": asdict(WORLD)}
    (tmp_path / "dataset.json").write_text(json.dumps({"source": source}))
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(synthetic_schema().model_dump(mode="json")))
    return tmp_path


def test_nothing_imported_here_imports_locust() -> None:
    """It replaces threads and sockets by gevent's at import, in the whole process."""
    assert "locust" not in sys.modules


def test_arrivals_go_on_at_the_rate_and_are_the_same_for_the_same_seed() -> None:
    def first(count: int, seed: int) -> list[tuple[float, int, tuple[int, ...]]]:
        drawn = arrivals(lambda block: Workload(rate=20, seconds=5, seed=seed + block, users=9, items=30, candidates_mean=4))
        return [(a.at, a.user, tuple(a.items.tolist())) for a in itertools.islice(drawn, count)]

    found = first(1000, 7)
    times = np.array([at for at, _, _ in found])
    assert (np.diff(times) >= 0).all()
    assert times[-1] == pytest.approx(50, rel=0.15)  # five deviations of a Poisson count of 1000
    assert found == first(1000, 7)
    assert found != first(1000, 8)
    assert all(len(set(items)) == len(items) for _, _, items in found)


def test_shapes() -> None:
    assert [ramp_level(at, 60, 10, 50) for at in (0, 15, 30, 60)] == [(10, 40.0), (30, 40.0), (50, 40.0), None]
    assert [(spike_level(at, 60, 10, 50) or (0,))[0] for at in (0, 19, 20, 39, 40, 59)] == [10, 10, 50, 50, 10, 10]
    assert spike_level(60, 60, 10, 50) is None
    for level in (ramp_level, spike_level):
        with pytest.raises(ValueError, match=r"peak-users: expected .* found 0"):
            level(0, 60, 10, 0)


def test_a_source_of_few_calls_sends_no_more_than_its_rate() -> None:
    rate = 0.01
    drawn = arrivals(lambda block: Workload(rate=rate, seconds=block_seconds(rate), seed=block, users=9, items=30))
    last = list(itertools.islice(drawn, 400))[-1].at
    assert 400 / last == pytest.approx(rate, rel=0.25)  # five deviations
    assert block_seconds(40) == 30


def test_a_capacity_is_told_in_the_rates_that_whole_users_send() -> None:
    found = in_whole_users(Capacity(50.0, float("inf"), ()), 20)
    assert (found.rate, found.fails_at) == (40, float("inf"))
    assert in_whole_users(Capacity(0.0, 50.0, ()), 1).rate == 0


def test_a_probe_of_which_too_little_was_heard_is_no_probe() -> None:
    check_sent(950, 1000)
    with pytest.raises(RuntimeError, match="expected about 1000 Ranks, found 800: workers"):
        check_sent(800, 1000)


def test_the_capacity_search_finds_the_rate_at_which_calls_begin_to_miss() -> None:
    def misses_at(rate: float, run: int) -> tuple[np.ndarray, np.ndarray]:
        seconds = {100 + s: [round(rate), round(rate / 5) if rate > 130 else 0] for s in range(20)}
        return misses_between(seconds, 100, 120)

    at, missed = misses_at(200, 0)
    assert (len(at), missed.sum()) == (4000, 800)
    found = find_capacity(misses_at, 40)
    assert found.rate <= 130 < found.fails_at
    assert found.fails_at / found.rate < 1.06


def test_workers_add_up() -> None:
    whole, master = Measures(), Measures()
    rng = np.random.default_rng(0)
    for number in range(3):
        worker = Measures()
        served, truth = rng.uniform(0.1, 0.9, (2, 10))
        clicked = rng.random(10) < truth
        for measures in (worker, whole):
            measures.impressions(served, truth, clicked)
            measures.due(5, missed=number == 1)
            measures.faults["why"] += 1
        master.add(json.loads(json.dumps(worker.take())))
        assert worker.take()["served"]["examples"] == 0
    assert asdict(master.served) == pytest.approx(asdict(whole.served))
    assert asdict(master.truth) == pytest.approx(asdict(whole.truth))
    assert master.seconds == whole.seconds == {5: [3, 1]}
    assert master.faults == whole.faults == {"why": 3}


@pytest.mark.parametrize(("given", "kept"), [(0.0, 0.0), (0.123456, 0.123), (7.4564, 7.46), (147.3, 147), (58_764, 58_800)])
def test_response_times_keep_three_figures(given: float, kept: float) -> None:
    assert three_figures(given) == kept


def test_the_truth_follows_what_the_server_was_told(world: Path) -> None:
    rng = np.random.default_rng(1)
    with protocol_server(synthetic_schema()) as server, Client(server.address, timeout_s=30) as client:
        people = Population(world, 20, "p", rng)
        items = np.arange(WORLD.items)
        stranger = people.probabilities(0, items, 0, 10)
        events = people.introduce(client, history_mean=6)
        assert events == server.sample("kunlun_events_total", outcome="stored")
        known = people.probabilities(0, items, 0, 10)
        assert not np.allclose(stranger, known), "a history changes the truth"
        now_ms = int(time.time() * 1e3)
        done = [(0, CLICK, 5, now_ms - 1), (0, CART, 5, now_ms)]
        sent = people.events(done)
        client.record_events(sent)
        people.remember(done, sent)
        time.sleep(0.005)  # what arrived in a millisecond is visible from the next one on
        assert not np.allclose(known, people.probabilities(0, items, 0, 10)), "and so does a click"
        lists = [people.probabilities(person, items, 0, 10) for person in range(20)]
    assert 0.02 < float(np.mean(lists)) < 0.6
