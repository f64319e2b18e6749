"""The artifact: graphs another engine runs, one copy of the weights, refused when anything differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

from model.artifact import Artifact, ArtifactError, list_versions, open_artifact, published_atomically
from model.signature import ENCODE_USER, SCORE_CANDIDATES, encode_user_signature, score_candidates_signature


@pytest.fixture
def copy(artifact: Artifact, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(artifact.path, tmp_path / "models" / "random" / "1"))


@pytest.mark.parametrize("graph", [ENCODE_USER, SCORE_CANDIDATES])
def test_an_independent_engine_computes_what_the_twin_computed(artifact: Artifact, graph: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(artifact.graph(graph), options)
    golden = {k.removeprefix(f"{graph}/"): v for k, v in artifact.golden().items() if k.startswith(f"{graph}/")}
    outputs = session.run(None, {i.name: golden[i.name] for i in session.get_inputs()})
    for meta, value in zip(session.get_outputs(), outputs, strict=True):
        np.testing.assert_allclose(value, golden[meta.name], rtol=2e-4, atol=2e-5)


def test_graphs_have_the_declared_names_and_sizes(artifact: Artifact) -> None:
    for signature in (
        encode_user_signature(artifact.schema, artifact.config),
        score_candidates_signature(artifact.schema, artifact.config),
    ):
        proto = onnx.load(artifact.graph(signature.name), load_external_data=False)
        for values, specs in ((proto.graph.input, signature.inputs), (proto.graph.output, signature.outputs)):
            found = [(v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
            assert found == [(s.name, s.shape) for s in specs]


def test_weights_exist_once(artifact: Artifact) -> None:
    weights = load_file(artifact.path / "graphs" / "weights.safetensors")
    dense = sum(w.nbytes for w in weights.values())
    graphs = sum(artifact.graph(g).stat().st_size for g in (ENCODE_USER, SCORE_CANDIDATES))
    inlined = sum(w.nbytes for w in weights.values() if w.nbytes < 128)
    proto = onnx.load(artifact.graph(SCORE_CANDIDATES), load_external_data=False)
    raw = [i for i in proto.graph.initializer if i.data_location != onnx.TensorProto.EXTERNAL and len(i.raw_data) >= 128]
    assert raw == []
    assert inlined < 0.01 * dense
    assert graphs < dense


def test_every_damaged_file_is_refused_by_name(copy: Path) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    assert {"graphs/encode_user.onnx", "graphs/weights.safetensors", "golden.safetensors", "prior.safetensors"} <= files.keys()
    for name in files:
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=f"files.{name} differs from its SHA-256"):
            open_artifact(copy)
        (copy / name).write_bytes(whole)
    (copy / "prior.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"file prior.safetensors is missing; export the model again"):
        open_artifact(copy)


def test_a_changed_schema_or_a_strange_manifest_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["schema_"]["max_candidates"] = 7
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="schema_digest differs from the schema it holds"):
        open_artifact(copy)
    manifest["color"] = "red"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="color: unknown key"):
        open_artifact(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        open_artifact(copy)
    with pytest.raises(ArtifactError, match=r"no manifest.json here; expected <repository>/<model>/<version>"):
        open_artifact(copy.parent)


def test_the_reference_of_scores_is_read_back_and_may_be_absent_from_older_artifacts(artifact: Artifact, copy: Path) -> None:
    assert artifact.manifest.score_reference.keys() == {"click", "like"}
    for reference in artifact.manifest.score_reference.values():
        assert sum(reference.histogram) == 10_000
        assert reference.base_rate == 0.05
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["score_reference"]["like"]["histogram"].pop()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"score_reference.like.histogram: .* at least 192 items.*; export the model again"):
        open_artifact(copy)
    del manifest["score_reference"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_artifact(copy).manifest.score_reference == {}


def test_a_version_appears_whole_or_not_at_all_and_never_twice(tmp_path: Path) -> None:
    target = tmp_path / "m" / "1"

    def fail_halfway() -> None:
        with published_atomically(target) as aside:
            (aside / "half").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert list((tmp_path / "m").iterdir()) == []
    with published_atomically(target) as aside:
        (aside / "manifest.json").write_text("{}")
    assert list_versions(tmp_path) == {"m": ["1"]}
    with pytest.raises(ArtifactError, match="exists already and versions are immutable"), published_atomically(target):
        pass


def test_tables_are_memory_mapped_and_hold_no_pickle(artifact: Artifact) -> None:
    for name, table in artifact.tables.items():
        assert isinstance(table, np.memmap), name
        assert table.shape[0] == artifact.manifest.table_rows[name]
