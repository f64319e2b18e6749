"""`make quality` on a log in Metarank's format: every figure is there, and those of a log with a clear taste are clear."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loadtest.checks.quality_log import LogQuality
from serving.engines.parity import GATES

CONFIG = """
name: quick
model: tiny
split: per_user_last
epochs: 2
batch_requests: 16
threads: 1
device: cpu
refit_on_validation: true
optimizer: {dense_lr: 0.005, warmup_steps: 5}
augment: {empty_history: 0, truncated_history: 0}
"""
GENRES = ("war", "love", "space")


def write_films(path: Path, users: int = 90, films: int = 60, rankings: int = 5, shown: int = 12) -> Path:
    """Users who click what is of their genre, nine times out of ten, and little else."""
    rng, lines = np.random.default_rng(7), []
    for film in range(films):
        fields = [{"name": "genres", "value": [GENRES[film % 3]]}, {"name": "vote_avg", "value": float(film % 10)}]
        lines.append({"event": "item", "id": f"i{film}", "item": str(film), "timestamp": "1", "fields": fields})
    for turn in range(rankings):
        for user in range(users):
            name, at = f"r{turn}-{user}", 1_000_000 + 100_000 * turn + user
            items = rng.choice(films, shown, replace=False)
            liked = (items % 3 == user % 3) & (rng.random(shown) < 0.9)
            common = {"user": f"u{user}", "fields": []}
            lines.append(
                common | {"event": "ranking", "id": name, "timestamp": str(at), "items": [{"id": str(i)} for i in items]}
            )
            lines += [
                common
                | {"event": "interaction", "type": "click", "id": f"c{name}-{i}", "ranking": name}
                | {"item": str(i), "timestamp": str(at + 5_000)}
                for i in items[liked]
            ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_a_clear_taste_shows_in_every_figure(tmp_path: Path) -> None:
    config = tmp_path / "quick.yaml"
    config.write_text(CONFIG)
    quality = LogQuality(write_films(tmp_path / "films.jsonl"), tmp_path / "work", range(1), config)
    trained, refitted, against, metarank = (step() for step in quality.checks().values())
    for check in (trained, refitted):
        assert check.figures["ne"]["value"] < 0.6
        assert check.figures["ne"]["low"] < check.figures["ne"]["value"] < check.figures["ne"]["high"]
        assert check.figures["auc"]["value"] > 0.9
        assert check.ok
    assert len(trained.figures["validation_ne"][0]) == 2
    assert against.ok, "ids say nothing of a taste"
    assert against.figures["trained"]["gain_percent"]["low"] > 20
    assert metarank.figures["ndcg10"]["value"] > 0.9
    assert metarank.figures["test_requests"] == pytest.approx(90, abs=3)


@pytest.mark.slow
def test_affinities_over_grpc_are_those_of_offline_histories(tmp_path: Path) -> None:
    """The demo on such a log: events travel with their attributes, and the server's scores are those of the torch twin."""
    config, data = tmp_path / "quick.yaml", write_films(tmp_path / "films.jsonl")
    config.write_text(CONFIG)
    flags = ("--data", str(data), "--config", str(config), "--requests", "90", "--keep", str(tmp_path / "w"), "--json")
    done = subprocess.run(
        [sys.executable, "-m", "kunlun.cli", "demo", *flags], stdout=subprocess.PIPE, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    gate, _ = GATES[figures["precision"]]
    assert figures["errors"] == 0
    assert figures["max_score_difference"] <= gate
    assert figures["ne_online"] == pytest.approx(figures["ne_offline_same_impressions"], abs=gate)
    assert figures["ne_test"] < 0.6, "without affinities, or with empty ones, it stays above 0.9"
