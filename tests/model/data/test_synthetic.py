"""The synthetic log's truth is what a model could at best know, and the Bayes figures say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data import synthetic_bounds
from model.data.request_log import RequestLog, load_request_log
from model.data.synthetic import category_name, generate
from model.data.synthetic_world import SyntheticConfig, World, interest, position_free, position_logits
from model.hashing import string_key
from model.metrics.normalized_entropy import NEState

CONFIG = SyntheticConfig(seed=3, requests=1_500, users=150, items=200, late_share=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], RequestLog]:
    directory = tmp_path_factory.mktemp("synthetic") / "log"
    return generate(CONFIG, directory), load_request_log(directory)


def test_the_stored_truth_follows_from_the_histories_that_the_log_gives(made: tuple[dict[str, Any], RequestLog]) -> None:
    _check_truth(CONFIG, made[1], every=7)


def _check_truth(config: SyntheticConfig, log: RequestLog, every: int) -> None:
    assert log.truth is not None
    world = World.draw(config, np.random.default_rng(config.seed))
    category = {string_key(category_name(c), log.schema.hash): c for c in range(config.categories)}
    surface = {string_key(f"surface-{s}", log.schema.hash): s for s in range(config.surfaces)}
    for request in range(0, len(log), every):
        histories = log.histories(request)
        clicks, carts = (
            np.array([category[k] for k in histories[e]["category"].tolist()], dtype=int) for e in ("click", "cart")
        )
        since = (log.time_ms[request] - histories["click"]["time_ms"].max()) / 1000 if len(clicks) else 0.0
        shown = np.array([int(log.item_ids[i][1:]) for i in log.item_index[log.offsets[request] : log.offsets[request + 1]]])
        user = int(log.user_ids[log.user_index[request]][1:])
        own = surface[int(log.contexts["surface"][request])]
        logits = world.static_logits(config, shown, int(world.user_segment[user]), own)
        logits = logits + interest(config, clicks, carts, float(since))[world.item_category[shown]]
        truth = log.truth[log.offsets[request] : log.offsets[request + 1], 0]
        np.testing.assert_allclose(truth, position_free(config, logits, len(shown)), atol=1e-6)


def test_labels_follow_the_truth(made: tuple[dict[str, Any], RequestLog]) -> None:
    info, log = made
    assert log.truth is not None
    truth, labels = log.truth[:, 0].astype(np.float64), log.labels[:, 0]
    deviation = np.sqrt((truth * (1 - truth)).sum())
    assert abs(labels.sum() - truth.sum()) < 4 * deviation
    assert NEState.of(truth, labels).normalized_entropy == pytest.approx(info["bayes"]["click"]["ne_bayes"], abs=0.03)


def test_some_events_arrive_late_and_out_of_order(made: tuple[dict[str, Any], RequestLog]) -> None:
    _, log = made
    user = int(np.argmax(np.diff(log.events["click"].offsets)))
    arrivals = log.events["click"].of_user(user)
    assert np.all(np.diff(arrivals["arrival_ms"]) >= 0)
    assert np.any(np.diff(arrivals["time_ms"]) < 0)
    assert np.all(arrivals["arrival_ms"] >= arrivals["time_ms"])


def test_history_and_its_order_matter(made: tuple[dict[str, Any], RequestLog]) -> None:
    figures = made[0]["bayes"]["click"]
    assert figures["ne_with_position"] < figures["ne_bayes"] < figures["ne_no_order"] - 0.02
    assert figures["ne_no_order"] < figures["ne_no_history"] - 0.02
    assert figures["ne_no_history"] < 1


def test_without_an_order_effect_the_bag_knows_nearly_everything(tmp_path: Path) -> None:
    config = SyntheticConfig(seed=3, requests=1_500, users=150, items=200, drift=0.0, decay=1.0)
    figures = generate(config, tmp_path / "log")["bayes"]["click"]
    assert figures["ne_no_order"] - figures["ne_bayes"] < 0.15 * (figures["ne_no_history"] - figures["ne_bayes"])


def test_without_history_effects_all_bounds_agree(tmp_path: Path) -> None:
    config = SyntheticConfig(seed=3, requests=600, users=80, items=100, drift=0.0, pull=0.0, satiation=0.0)
    figures = generate(config, tmp_path / "log")["bayes"]["click"]
    assert figures["ne_no_history"] == pytest.approx(figures["ne_bayes"], abs=1e-4)
    assert figures["ne_no_order"] == pytest.approx(figures["ne_bayes"], abs=5e-3)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    config = SyntheticConfig(seed=5, requests=120, users=20, items=50)
    one, two = (generate(config, tmp_path / name) for name in ("one", "two"))
    assert one == two
    for file in ("requests", "items", "users", "events"):
        assert (tmp_path / "one" / f"{file}.parquet").read_bytes() == (tmp_path / "two" / f"{file}.parquet").read_bytes()
    other = generate(SyntheticConfig(seed=6, requests=120, users=20, items=50), tmp_path / "three")
    assert other["counts"]["positives"] != one["counts"]["positives"]


def test_shards_make_another_log_of_the_same_world(tmp_path: Path) -> None:
    """Their number decides the log, not the processes; histories, labels and truth belong together as in one piece."""
    config = SyntheticConfig(seed=5, requests=240, users=40, items=50, shards=3)
    made = [generate(config, tmp_path / name) for name in ("one", "two")]
    assert made[0] == made[1]
    assert (tmp_path / "one" / "requests.parquet").read_bytes() == (tmp_path / "two" / "requests.parquet").read_bytes()
    whole = generate(replace(config, shards=1), tmp_path / "whole")
    assert whole["bayes"]["click"]["ne_bayes"] == pytest.approx(made[0]["bayes"]["click"]["ne_bayes"], abs=0.05)
    log, other = (load_request_log(tmp_path / name) for name in ("one", "whole"))
    assert log.time_ms.tolist() == other.time_ms.tolist()
    assert log.item_ids == other.item_ids
    _check_truth(config, log, every=5)


def test_positions_average_to_nothing_on_the_logit() -> None:
    assert position_logits(CONFIG, 16).sum() == pytest.approx(0)
    assert position_logits(CONFIG, 16)[0] > position_logits(CONFIG, 16)[-1]


def test_the_default_world_is_frozen(tmp_path: Path) -> None:
    """Figures of different worlds cannot be compared: changing a parameter must be noticed."""
    figures = generate(SyntheticConfig(), tmp_path / "log")["bayes"]["click"]
    found = [figures[name] for name in ("ne_bayes", "ne_no_order", "ne_no_history", "base_rate")]
    assert found == pytest.approx([0.7753, 0.8411, 0.9343, 0.1538], abs=1e-3)


def test_bounds_of_a_sample_are_close_to_those_of_the_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SyntheticConfig(seed=7, requests=1_000, users=120, items=80)
    whole = generate(config, tmp_path / "whole")["bayes"]["click"]
    monkeypatch.setattr(synthetic_bounds, "MEASURED_ROWS", 4_000)
    sampled = generate(config, tmp_path / "sampled")["bayes"]["click"]
    assert sampled["ne_bayes"] == whole["ne_bayes"]
    for name in ("ne_no_order", "ne_no_history"):
        assert sampled[name] == pytest.approx(whole[name], abs=0.02)
