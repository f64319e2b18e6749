"""The frontier file: read for exactly the artifact and engine it was measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.artifact import ArtifactError
from serving.core.frontier import default_frontier, frontier_path, load_frontier, save_frontier


def test_what_was_saved_is_loaded_for_the_same_artifact_and_engine_only(tmp_path: Path) -> None:
    measured = default_frontier().model_copy(update={"artifact_digest": "a", "engine_key": "e"})
    path = frontier_path(tmp_path / "model-1-abc")
    assert load_frontier(path, "a", "e") is None
    save_frontier(measured, path)
    assert load_frontier(path, "a", "e") == measured
    with pytest.raises(ArtifactError, match="artifact_digest: expected b, found a; run `kunlun frontier` again"):
        load_frontier(path, "b", "e")
    with pytest.raises(ArtifactError, match="engine_key: expected f, found e"):
        load_frontier(path, "a", "f")
    path.write_text("{}")
    with pytest.raises(ArtifactError, match="no frontier of this version"):
        load_frontier(path, "a", "e")
