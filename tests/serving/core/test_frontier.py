"""The frontier file: read for exactly the artifact and engine it was measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.artifact import ArtifactError
from model.config import save_json
from serving.core.frontier import default_frontier, frontier_path, load_frontier


def test_what_was_saved_is_loaded_for_the_same_artifact_and_engine_only(tmp_path: Path) -> None:
    measured = default_frontier().model_copy(update={"artifact_digest": "a", "engine_key": "abc"})
    entry = tmp_path / "model-1-abc"
    path = frontier_path(entry)
    assert load_frontier(entry, "a") is None
    save_json(measured, path)
    assert load_frontier(entry, "a") == measured
    with pytest.raises(ArtifactError, match="artifact_digest: expected b, found a; run `kunlun frontier` again"):
        load_frontier(entry, "b")
    other = tmp_path / "model-1-def"
    frontier_path(other).write_bytes(path.read_bytes())
    with pytest.raises(ArtifactError, match="engine_key: expected def, found abc"):
        load_frontier(other, "a")
    path.write_text("{}")
    with pytest.raises(ArtifactError, match="no frontier of this version"):
        load_frontier(entry, "a")
