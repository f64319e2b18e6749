"""Online NE of a fleet: three real servers, a consumer that is killed, and a real Prometheus with the rules we ship."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import redis
from feedback_fixtures import SIGNER, now_ms, served
from served_model import serve

from kunlun.client import Client, Outcome
from loadtest.fleet_feedback import (
    consumer_of,
    in_pieces,
    metrics_of,
    report_and_kill,
    shuffled,
    wait_until_counted,
    wait_until_scraped,
)
from loadtest.processes import RunningServer
from loadtest.prometheus_process import RULES, is_installed, prometheus
from loadtest.prometheus_text import REPORTED, total
from loadtest.store_process import store_process
from model.artifact import Artifact
from model.metrics.normalized_entropy import NEState
from serving.feedback.outcome import encode_outcome
from serving.store.open import open_store

ITEMS = list(range(1, 41))
BIDS = {"bid": [1.0] * len(ITEMS)}
TASKS = ("click", "like")
SEED = 20_261_125


def test_a_fleet_counts_once_what_comes_in_any_order_while_its_consumer_is_killed(
    artifact: Artifact, engine_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_installed():
        # Not a dependency of the product: `make system-deps`, which CI runs first, brings it.
        pytest.skip("not verified here: prometheus is not installed (make system-deps)")
    print("seed", SEED)
    monkeypatch.setenv("KUNLUN_RECEIPT_KEY", "0123456789abcdef")
    rng, order = np.random.default_rng(SEED), random.Random(SEED)
    with ExitStack() as stack:
        store = stack.enter_context(store_process(tmp_path))
        arguments = ("--repository", str(artifact.path.parents[1]), "--engine-cache", str(engine_cache), "--store", store.url)
        replicas = []
        for number in range(3):
            directory = tmp_path / str(number)
            directory.mkdir()
            replicas.append(stack.enter_context(serve(directory, *arguments)))
        facts = [replica.wait_until_ready() for replica in replicas]
        servers = [RunningServer(f["address"], f["metrics"], f["store"], f["pid"]) for f in facts]
        clients = [stack.enter_context(Client(server.address, timeout_s=10)) for server in servers]
        rules = stack.enter_context(prometheus(tmp_path / "prometheus", [server.metrics for server in servers], "5m"))

        offline = {task: NEState() for task in TASKS}
        reports: list[Outcome] = []
        for number in range(90):
            reply = order.choice(clients).rank(f"u{number}", ITEMS, columns=BIDS, top_k=20)
            shown = rng.permutation(20)[:12].tolist()
            labels = {}
            for task in TASKS:
                scores = np.array(reply.scores[task], np.float32)[shown]
                clicked = rng.random(12) < scores
                labels[task] = np.array(shown)[clicked].tolist()
                offline[task] += NEState.of(scores, clicked)
            reports += in_pieces(Outcome(reply.receipt, shown, labels))
        reports = shuffled(reports, order)
        survivors = report_and_kill(servers, clients, reports, order)
        wait_until_counted(survivors, len(reports))
        for server in survivors:
            samples = metrics_of(server)
            for task in TASKS:
                for name, value in vars(offline[task]).items():
                    found = total(samples, f"kunlun_online_{name}_total", task=task, **REPORTED)
                    assert found == pytest.approx(value, rel=1e-9, abs=1e-9)
            assert total(samples, "kunlun_feedback_unreadable_total") == 0
        wait_until_scraped(rules, offline)
        for task, state in offline.items():
            labels_of = f'{{task="{task}", slice="*", maturity="provisional"}}'
            assert rules.value(f"kunlun:online_ne:1h{labels_of}") == pytest.approx(state.normalized_entropy, rel=0.01)
            assert rules.value(f"kunlun:online_calibration:1h{labels_of}") == pytest.approx(state.calibration, rel=0.01)
            assert rules.value(f"kunlun:online_base_rate:1h{labels_of}") == pytest.approx(state.base_rate, rel=0.01)
        assert rules.value("kunlun:feedback_label_join_ratio:1h") == pytest.approx(1, rel=0.01)


def test_outcomes_are_counted_in_a_process_of_its_own(artifact: Artifact, tmp_path: Path) -> None:
    repository = str(artifact.path.parents[1])
    with store_process(tmp_path) as store:
        command = [sys.executable, "-m", "kunlun.cli", "feedback", "--repository", repository, "--metrics-port", "0"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert refused.returncode == 2
        assert "store: expected the URL of the store that the servers share, found 'embedded'" in refused.stderr
        process = subprocess.Popen([*command, "--store", store.url], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            server = RunningServer("", address, store.url, process.pid)
            assert consumer_of([server]) is server
            reports = [encode_outcome(SIGNER.sign(served(issued_ms=now_ms())), [0, 1], [(1, 0)], now_ms())]
            asyncio.run(append(store.url, artifact, [*reports, *reports]))
            wait_until_counted([server], 2)
            assert total(metrics_of(server), "kunlun_online_examples_total", task="click", **REPORTED) == 2
            process.terminate()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
            process.wait()
        lease = redis.Redis(unix_socket_path=store.url.partition("://")[2]).exists("kunlun:{feedback}:lease")
        assert not lease, "given back"


async def append(url: str, artifact: Artifact, reports: list[bytes]) -> None:
    store = await open_store(url, artifact.schema)
    await store.append_outcomes(reports)
    await store.close()


def test_the_rules_hold_what_they_promise() -> None:
    if shutil.which("promtool") is None:
        # As above.
        pytest.skip("not verified here: promtool is not installed (make system-deps)")
    rules, tests = (sorted(file.name for file in RULES.glob(f"*.{kind}.yaml")) for kind in ("rules", "test"))
    assert len(rules) == len(tests) == 2
    for arguments in (["check", "rules", *rules], ["test", "rules", *tests]):
        done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
