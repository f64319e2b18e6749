"""The demo's model in compose: made once, and never beside a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.deployment.demo_model import build_demo_model
from loadtest.pipeline import Pipeline
from model.artifact import MANIFEST

STORE = "redis://store:6379"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that would have run."""
    found: list[tuple[str, ...]] = []

    def note(self: Pipeline, command: str, doing: str, *arguments: str) -> dict[str, Any]:
        found.append((command, *arguments))
        return {}

    monkeypatch.setattr(Pipeline, "stage", note)
    return found


def test_a_repository_with_a_model_is_left_alone(tmp_path: Path, stages: list[tuple[str, ...]]) -> None:
    version = tmp_path / "models" / "shop" / "1"
    version.mkdir(parents=True)
    (version / MANIFEST).write_text("{}")
    assert not build_demo_model(tmp_path / "models", tmp_path / "data", store=STORE)
    assert not stages, "the demo's users must not come into the store of another model"
    assert not (tmp_path / "data").exists()


def test_the_model_is_there_only_after_the_store_is_full(tmp_path: Path, stages: list[tuple[str, ...]]) -> None:
    assert build_demo_model(tmp_path / "models", tmp_path / "data", store=STORE)
    assert [stage[0] for stage in stages] == ["prepare", "load", "train", "export"]
    assert stages[1] == ("load", str(tmp_path / "data"), "--store", STORE)
    stages.clear()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "schema.yaml").touch()
    assert build_demo_model(tmp_path / "models", tmp_path / "data"), "what was interrupted before its end goes on"
    assert [stage[0] for stage in stages] == ["train", "export"]
