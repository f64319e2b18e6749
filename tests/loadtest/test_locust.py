"""Locust as a person runs it, against a real gRPC server: objectives, two workers, the web UI."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from protocol_server import ProtocolServer, protocol_server

from loadtest.processes import free_ports, wait_until
from loadtest.swarm.process import RANK_ONLY, command, headless
from model.data.synthetic import synthetic_schema
from model.data.synthetic_world import SyntheticConfig

pytestmark = pytest.mark.slow
SHAPES = RANK_ONLY.parent
WORLD = SyntheticConfig(seed=3, users=50, items=60, min_shown=5, max_shown=10)
LIGHT = ["--population", "10", "--history-mean", "2", "--candidates-mean", "8", "--call-timeout-ms", "20000"]
ENOUGH = ["--max-ranks", "30"]
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server(synthetic_schema()) as running:
        yield running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of a synthetic log that tell its world."""
    directory = tmp_path_factory.mktemp("world")
    source = {"kind": "synthetic", "parameters": asdict(WORLD)}
    (directory / "dataset.json").write_text(json.dumps({"source": source}))
    (directory / "schema.yaml").write_text(yaml.safe_dump(synthetic_schema().model_dump(mode="json")))
    return directory


def test_two_workers_send_what_one_master_reports(server: ProtocolServer, world: Path) -> None:
    [port] = free_ports(1)
    workers = [
        subprocess.Popen(
            command(["--worker", "--master-port", str(port)]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    try:
        before = server.sample("kunlun_calls_total", method="Rank", code="OK")
        master = ["--master", "--master-bind-port", str(port), "--expect-workers", "2", "--slo-p99-ms", "60000"]
        status, report = headless(server.address, 8, LIMIT_S, [*master, "--world", str(world), *LIGHT, *ENOUGH])
        assert (status, report["ok"], report["missed"]) == (0, True, [])
        ranks = report["calls"]["Rank"]
        assert ranks["calls"] == server.sample("kunlun_calls_total", method="Rank", code="OK") - before > 0
        assert report["calls"]["ReportOutcomes"]["calls"] > 0
        assert report["calls"]["RecordEvents"]["calls"] > 0
        assert report["stages"]["score"]["calls"] == ranks["calls"]
        assert report["stages"]["score"]["p50_ms"] == 4.0, "as the server tells"
        clicks = report["clicks"]
        assert 0 < clicks["clicked"] < clicks["impressions"]
        assert all(worker.wait(timeout=LIMIT_S) == 0 for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_an_objective_that_is_missed_fails_the_run_and_is_named(server: ProtocolServer) -> None:
    arguments = ["--slo-p50-ms", "0.001", "--rate-per-user", "20", "--item-count", "60", *LIGHT, *ENOUGH, "RankOnly"]
    status, report = headless(server.address, 1, LIMIT_S, arguments, RANK_ONLY)
    assert (status, report["ok"], report["missed"]) == (1, False, ["rank_p50_ms"])
    assert report["calls"]["Rank"]["failed"] == 0
    assert list(report["calls"]) == ["Rank"]


@pytest.mark.parametrize(
    ("host", "arguments", "fault"),
    [
        (None, ["--peak-users", "0", "RankOnly"], "peak-users: expected the number of users at the peak of the shape, found 0"),
        (None, ["--peak-users", "1", "Passerby"], "world: expected the directory of a synthetic log for Passerby, found none"),
        ("127.0.0.1:1", ["--peak-users", "1", "RankOnly"], "host: expected a server that is serving, found none"),
    ],
    ids=["option", "world", "host"],
)
def test_what_no_load_explains_ends_the_run_and_is_named(
    server: ProtocolServer, host: str | None, arguments: list[str], fault: str
) -> None:
    status, report = headless(host or server.address, 1, LIMIT_S, arguments, RANK_ONLY, SHAPES / "ramp.py")
    assert (status, report["ok"]) == (1, False)
    [text] = report["faults"]
    assert text.startswith(fault)


def test_a_spike_is_sent(server: ProtocolServer) -> None:
    shape = ["--peak-users", "100", "--shape-seconds", "9", "--slo-failed", "1", "--item-count", "60", *LIGHT, "RankOnly"]
    status, report = headless(server.address, 2, LIMIT_S, shape, RANK_ONLY, SHAPES / "spike.py")
    assert (status, report["faults"]) == (0, {})
    assert report["calls"]["Rank"]["calls"] > 50, "2 users for 6 s, 100 for 3 s"


def test_the_web_ui_starts_a_load_and_shows_stages(server: ProtocolServer) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    arguments = ["--host", server.address, "--web-host", "127.0.0.1", "--web-port", str(port), "--item-count", "60", *LIGHT]
    process = subprocess.Popen(
        command([*arguments, "RankOnly"], RANK_ONLY), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        wait_until(lambda: answers(url), "the web UI did not start", LIMIT_S)
        with urllib.request.urlopen(url, timeout=30) as page:
            assert "Locust" in page.read().decode()
        form = urllib.parse.urlencode({"user_count": 20, "spawn_rate": 20, "host": server.address}).encode()
        with urllib.request.urlopen(f"{url}/swarm", data=form, timeout=60) as reply:
            assert json.load(reply)["success"]
        wait_until(lambda: {"Rank", "queue", "send_lag"} <= rows(url).keys(), "no rows for Rank and its stages", LIMIT_S)
        assert rows(url)["Rank"]["num_failures"] == 0
        with urllib.request.urlopen(f"{url}/stop", data=b"", timeout=60) as reply:
            assert json.load(reply)["success"]
        process.terminate()
        output, _ = process.communicate(timeout=LIMIT_S)
        assert json.loads(output.strip().splitlines()[-1])["calls"]["Rank"]["calls"] > 0
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def rows(url: str) -> dict[str, Any]:
    """The web UI's table by name."""
    with urllib.request.urlopen(f"{url}/stats/requests", timeout=30) as reply:
        return {row["name"]: row for row in json.load(reply)["stats"]}
