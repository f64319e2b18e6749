"""`kunlun serve` as a user runs it: a child process with a real model, a real store, real signals."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from served_model import ServeProcess, serve

from kunlun.client import Client, Event, KunlunError, Outcome, RankQuery
from model.artifact import Artifact

ITEMS = list(range(1, 41))
BIDS = {"bid": [1.0] * len(ITEMS)}


@pytest.fixture(scope="module")
def model(artifact: Artifact, engine_cache: Path) -> tuple[str, ...]:
    """Arguments that serve the random model."""
    return ("--repository", str(artifact.path.parents[1]), "--engine-cache", str(engine_cache))


@pytest.fixture(scope="module")
def server(model: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serve(tmp_path_factory.mktemp("server"), *model) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(server: ServeProcess) -> Iterator[Client]:
    with Client(server.wait_until_ready()["address"], timeout_s=10) as opened:
        yield opened


def metrics_page(server: ServeProcess) -> str:
    with urllib.request.urlopen(f"http://{server.wait_until_ready()['metrics']}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


def scrape(server: ServeProcess) -> dict[str, float]:
    """Samples of /metrics by their full name."""
    lines = [line for line in metrics_page(server).splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_metrics_exist_at_zero_before_traffic(server: ServeProcess) -> None:
    samples = scrape(server)
    for name in (
        'kunlun_rank_stage_seconds_count{stage="total"}',
        'kunlun_rank_rungs_total{rung="full"}',
        'kunlun_calls_total{code="OK",method="Rank"}',
        'kunlun_online_examples_total{maturity="matured",slice="*",task="click",version="1"}',
        'kunlun_receipts_rejected_total{reason="forged"}',
        'kunlun_rank_refused_total{reason="overloaded"}',
        "kunlun_queue_depth",
    ):
        assert samples[name] == 0, name
    assert samples["kunlun_device_peak_flops"] > 1e8
    assert samples['kunlun_model_info{engine="openvino",model="random",precision="f32",version="1"}'] == 1


def test_prometheus_own_checker_finds_nothing_to_improve(server: ServeProcess) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("not verified here: promtool is not installed (make system-deps)")
    page = metrics_page(server)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_click_changes_the_next_rank(client: Client) -> None:
    before = client.rank("maya", ITEMS, columns=BIDS, context={"surface": "home"}, include_timings=True)
    token = client.record_events([Event("maya", "click", before.items[-1], {"dwell": 9.0})])
    after = client.rank("maya", ITEMS, columns=BIDS, context={"surface": "home"}, after=token)
    assert (before.rung, after.rung) == ("FULL", "FULL")
    assert (before.history_length, after.history_length) == (0, 1)
    assert before.unknown_user
    assert not after.unknown_user
    assert before.scores != after.scores
    assert before.timings is not None
    assert 0 < before.timings["score_us"] <= before.timings["total_us"]


def test_scores_do_not_depend_on_who_asks_at_the_same_time(client: Client) -> None:
    def ask(user: str) -> tuple[float, ...]:
        reply = client.rank(user, ITEMS, columns=BIDS, time_ms=1_700_000_000_000)
        return tuple(score for _, score in sorted(zip(reply.items, reply.scores["click"], strict=True)))

    users = [f"user{n}" for n in range(16)]
    client.record_events([Event(user, "click", 1 + n, time_ms=1_600_000_000_000 + n) for n, user in enumerate(users)])
    alone = {user: ask(user) for user in users}
    together: dict[str, tuple[float, ...]] = {}
    threads = [threading.Thread(target=lambda user=user: together.update({user: ask(user)})) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_the_native_front_end_ranks_and_explains(model: tuple[str, ...], tmp_path: Path) -> None:
    with serve(tmp_path, *model, "--front-end", "native") as running:
        address = running.wait_until_ready()["address"]
        with Client(address, timeout_s=10) as client:
            assert client.health()
            token = client.record_events([Event("nat", "click", 3)])
            assert client.rank("nat", ITEMS, columns=BIDS, after=token).history_length == 1
            with pytest.raises(KunlunError) as caught:
                client.rank("", ITEMS, columns=BIDS)
            assert caught.value.violations[0].field == "user_id"
            replies = list(client.rank_stream(RankQuery(f"s{n}", ITEMS, columns=BIDS, request_id=str(n)) for n in range(8)))
            assert {reply.request_id for reply in replies} == {str(n) for n in range(8)}
        assert running.stop() == 0, running.log


def test_outcomes_become_online_ne(client: Client, server: ServeProcess) -> None:
    for n in range(8):
        reply = client.rank(f"rater{n}", ITEMS, columns=BIDS, context={"surface": "shelf"}, top_k=5)
        client.report_outcomes([Outcome(reply.receipt, shown=range(5), labels={"click": [0]})])
    deadline = time.monotonic() + 10
    labels = 'maturity="provisional",slice="shelf",task="click",version="1"'
    name = f"kunlun_online_examples_total{{{labels}}}"
    while scrape(server).get(name) != 40:
        assert time.monotonic() < deadline, "outcomes were not aggregated"
        time.sleep(0.05)
    samples = scrape(server)
    assert samples[f"kunlun_online_positives_total{{{labels}}}"] == 8
    assert samples[f"kunlun_online_base_rate{{{labels.replace('shelf', '*')}}}"] == 0.2
    assert samples[f"kunlun_online_ne{{{labels}}}"] > 0
    assert samples["kunlun_feedback_consumer"] == 1
    assert 0 < samples["kunlun_mfu_busy"] < 1.5
    assert 0 < samples["kunlun_mfu_wall"] < samples["kunlun_mfu_busy"]
    assert samples['kunlun_engine_busy_seconds_total{graph="score_candidates"}'] > 0
    assert samples['kunlun_rank_stage_seconds_count{stage="total"}'] >= 8


def test_bad_input_is_refused_and_the_server_keeps_serving(client: Client) -> None:
    for items, columns, context, text in (
        ([1, 1], {"bid": [1.0, 1.0]}, {}, "candidates.ids[1]: expected distinct items"),
        (ITEMS, {}, {}, "candidate_features.bid: expected a column"),
        (ITEMS, BIDS, {"surfce": "x"}, "did you mean 'surface'?"),
        (ITEMS, {"bid": [float("nan")] * 40}, {}, "expected finite numbers"),
    ):
        with pytest.raises(KunlunError) as caught:
            client.rank("maya", items, columns=columns, context=context)
        assert caught.value.code == "INVALID_ARGUMENT"
        assert text in caught.value.message
    assert client.rank("maya", ITEMS, columns=BIDS).rung == "FULL"


def test_sigterm_finishes_calls_in_flight_and_exits_zero(model: tuple[str, ...], tmp_path: Path) -> None:
    with serve(tmp_path, *model, "--data-dir", str(tmp_path / "data")) as running:
        facts = running.wait_until_ready()
        outcomes: list[str] = []
        begun = threading.Event()

        def ask() -> None:
            with Client(facts["address"], timeout_s=10, retries=0) as client:
                for n in range(10_000):
                    try:
                        outcomes.append(client.rank(f"u{n % 50}", ITEMS, columns=BIDS).rung)
                    except KunlunError as error:
                        outcomes.append(error.code)
                        return
                    if n == 10:
                        begun.set()

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(30)
        assert running.stop() == 0, running.log
        asking.join(30)
        # The last call met a closed door; every call before it was answered in full.
        assert set(outcomes[:-1]) == {"FULL"}
        # CANCELLED: gRPC drops a call so that it had received but not yet handed to us when it was told to stop.
        assert outcomes[-1] in {"UNAVAILABLE", "CANCELLED"}
        assert "stopped" in running.log
        assert "Traceback" not in running.log
        assert "no receipt key" in running.log

    with serve(tmp_path, *model, "--metrics-port", "off") as again:
        assert again.wait_until_ready()["metrics"] == ""
        assert again.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--repository", "/nowhere"], "repository: expected a directory of artifacts, found '/nowhere'"),
        (["--model", "rondom"], "model: expected one of random, found 'rondom'"),
        (["--version", "2"], "version: expected one of 1, found '2'"),
        (["--threads-per-slot", "3"], "run `kunlun compile"),
        (["--store", "mysql://x"], "store: expected 'embedded' or a URL"),
        (["--port", "99999"], "port: Input should be less than or equal to 65535; found 99999"),
        (["--tls-certificate", "/c.pem"], "tls.key: required key is missing"),
        (
            ["--front-end", "native", "--max-connection-age-s", "9"],
            "front_end: expected grpcio together with max_connection_age_s",
        ),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    model: tuple[str, ...], tmp_path: Path, arguments: list[str], text: str
) -> None:
    with serve(tmp_path, *model, *arguments) as running:
        assert running.process.wait(timeout=60) == 2
        assert text in running.log
        assert "Traceback" not in running.log


def test_a_port_in_use_is_an_error(server: ServeProcess, model: tuple[str, ...], tmp_path: Path) -> None:
    port = server.wait_until_ready()["address"].rsplit(":", 1)[1]
    with serve(tmp_path, *model, "--port", port) as running:
        assert running.process.wait(timeout=60) == 2
        assert f"port: 127.0.0.1:{port} cannot be listened on" in running.log


@pytest.mark.skipif(os.environ.get("KUNLUN_TEST_FRONT_END") == "native", reason="the native front end has no TLS")
def test_mutual_tls_takes_known_clients_only(model: tuple[str, ...], tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("not verified here: openssl cannot make a certificate")
    tls = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(certificate)]
    with serve(tmp_path, *model, *tls) as running:
        address = running.wait_until_ready()["address"]
        root, pair = certificate.read_bytes(), (key.read_bytes(), certificate.read_bytes())
        known = grpc.ssl_channel_credentials(root, *pair)
        with Client(address, credentials=known, timeout_s=10) as client:
            assert client.health()
            assert client.rank("maya", ITEMS, columns=BIDS).rung == "FULL"
        for stranger in (grpc.ssl_channel_credentials(root), None):
            with Client(address, credentials=stranger, timeout_s=2, retries=0) as client, pytest.raises(KunlunError):
                client.rank("maya", ITEMS, columns=BIDS)
        assert running.stop() == 0
