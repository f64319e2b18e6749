"""The `exact` wiring on the same path as `user_split`: compiled, equal to the twin, served, the same bits in any batch."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from served_model import ServeProcess, serve

from kunlun.client import Client, Event
from model.architectures.kunlun.config import ExactConfig
from model.artifact import Artifact
from model.flops import FlopModel
from model.signature import ENCODE_USER, SCORE_CANDIDATES, encode_user_signature, score_candidates_signature
from serving.engines.base import Session
from serving.engines.open import open_engine
from serving.engines.parity import check_parity
from tests.serving.random_artifact import random_inputs

pytestmark = pytest.mark.slow
NOW = 1_700_000_000_000
ITEMS = list(range(1, 31))
SIZES = {"U": 4, "T_click": 16, "T_impression": 24}
BIDS = {"bid": [1.0] * len(ITEMS)}


@pytest.fixture(scope="module")
def session(exact_artifact: Artifact, exact_engine_cache: Path) -> Session:
    engine = open_engine(exact_artifact, cache=exact_engine_cache, precision="f32", threads_per_slot=1, slots=1)
    return engine.open_session()


@pytest.fixture(scope="module")
def server(
    exact_artifact: Artifact, exact_engine_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    model = ("--repository", str(exact_artifact.path.parents[1]), "--engine-cache", str(exact_engine_cache))
    with serve(tmp_path_factory.mktemp("exact"), *model) as running:
        running.wait_until_ready()
        yield running


def test_the_engine_computes_what_the_twin_computes(exact_artifact: Artifact, session: Session) -> None:
    assert isinstance(exact_artifact.config, ExactConfig)
    parity = check_parity(session, "f32", exact_artifact)
    assert parity.passed, parity


def test_the_manifest_declares_a_state_of_several_types_and_sizes(exact_artifact: Artifact) -> None:
    layouts = {tensor.name: tensor for tensor in exact_artifact.manifest.user_state}
    assert (layouts["tokens_click"].shape, layouts["tokens_click"].dtype) == ((64, 32), "float32")
    assert (layouts["length_click"].shape, layouts["length_click"].dtype) == ((), "int64")
    expected = 4 * 4 * 32 + sum(2 * 4 * cap * 32 + 4 * cap + 8 for cap in (32, 64))
    assert exact_artifact.manifest.user_state_bytes == expected


def test_a_candidate_has_the_same_bits_in_any_batch(
    exact_artifact: Artifact, session: Session, rng: np.random.Generator
) -> None:
    users = random_inputs(encode_user_signature(exact_artifact.schema, exact_artifact.config), SIZES, rng)
    states = session.run(ENCODE_USER, users)
    score = score_candidates_signature(exact_artifact.schema, exact_artifact.config)
    given = random_inputs(score, {"R": 4, "C": 64}, rng) | states
    together = session.run(SCORE_CANDIDATES, given)["logits"]
    assert np.std(together) > 1e-3
    for request in range(4):
        own = given["request_index"] == request
        alone = {k: v[own] if k.startswith("item_") else v[request : request + 1] for k, v in given.items()}
        alone["request_index"] = np.zeros(int(own.sum()), np.int64)
        assert np.array_equal(session.run(SCORE_CANDIDATES, alone)["logits"], together[own]), request


def test_the_server_serves_it_and_counts_real_events_as_useful_work(server: ServeProcess, exact_artifact: Artifact) -> None:
    facts = server.wait_until_ready()
    with Client(facts["address"], timeout_s=10) as client:
        ask_with_and_without_a_click(client)
    with urllib.request.urlopen(f"http://{facts['metrics']}/metrics", timeout=10) as page:
        counted = re.search(r'^kunlun_engine_useful_flops_total{graph="score_candidates"} (\S+)$', page.read().decode(), re.M)
    formula = FlopModel.from_json(exact_artifact.manifest.flops, exact_artifact.config)
    none, one = {"click": 0, "impression": 0}, {"click": 1, "impression": 0}
    expected = formula.score(1, 30, lengths=none).total + formula.score(2, 37, lengths=one).total
    assert counted is not None
    assert float(counted[1]) == pytest.approx(expected, rel=1e-9)
    assert expected < 0.5 * formula.score(3, 67).total, "padding would have counted for more than twice"


def ask_with_and_without_a_click(client: Client) -> None:
    """Three requests of one user: 30 candidates without history, then 30 and 7 with one click."""
    before = client.rank("maya", ITEMS, columns=BIDS, context={"surface": "home"}, time_ms=NOW)
    token = client.record_events([Event("maya", "click", before.items[-1], {"dwell": 9.0}, time_ms=NOW - 1000)])
    after = client.rank("maya", ITEMS, columns=BIDS, context={"surface": "home"}, after=token, time_ms=NOW)
    assert (before.rung, after.rung) == ("FULL", "FULL")
    assert (before.history_length, after.history_length) == (0, 1)
    assert before.scores != after.scores
    again = client.rank("maya", ITEMS[:7], columns={"bid": [1.0] * 7}, context={"surface": "home"}, time_ms=NOW)
    first, second = (dict(zip(r.items, r.scores["click"], strict=True)) for r in (after, again))
    assert second == {item: first[item] for item in ITEMS[:7]}, "the same bits from the cached state, whatever else is ranked"
