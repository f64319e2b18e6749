"""The engine cache fails closed: one sentence with the field, what was expected, what was found and the remedy."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kunlun.cli import main
from model.artifact import Artifact, ArtifactError
from serving.engines.cache import ENGINE_MANIFEST, EngineManifest, ParityFigures, load, publish
from serving.engines.open import build_engine, open_engine


def opened(artifact: Artifact, cache: Path, threads: int = 1) -> str:
    """The message of the error that opening raises."""
    with pytest.raises(ArtifactError) as caught:
        open_engine(artifact, cache=cache, precision="f32", threads_per_slot=threads, slots=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copied(engine_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(engine_cache, tmp_path / "engines"))


def test_empty_cache_names_the_command(artifact: Artifact, tmp_path: Path) -> None:
    message = opened(artifact, tmp_path / "none")
    assert "no compiled engine for random version 1" in message
    assert f"run `kunlun compile {artifact.path} --target openvino --precision f32 --threads 1 --cache" in message


def test_other_thread_count_is_named(artifact: Artifact, copied: Path) -> None:
    assert "threads: expected 3, found 1; run `kunlun compile" in opened(artifact, copied, threads=3)


def test_engine_of_another_library_version_is_refused(artifact: Artifact, copied: Path) -> None:
    entry = next(copied.iterdir())
    manifest = json.loads((entry / ENGINE_MANIFEST).read_text())
    manifest["identity"]["libraries"]["openvino"] = "1.0"
    (entry / ENGINE_MANIFEST).write_text(json.dumps(manifest))
    entry.rename(entry.with_name("random-1-0123456789abcdef"))
    message = opened(artifact, copied)
    assert "libraries: expected" in message
    assert "found {'openvino': '1.0'}" in message


def test_damaged_file_is_refused(artifact: Artifact, copied: Path) -> None:
    entry = next(copied.iterdir())
    with (entry / "encode_user.bin").open("r+b") as file:
        file.write(b"\x01\x02\x03\x04")
    assert "files.encode_user.bin differs from its SHA-256" in opened(artifact, copied)


def test_unreadable_manifest_is_refused(artifact: Artifact, copied: Path) -> None:
    (next(copied.iterdir()) / ENGINE_MANIFEST).write_text("{}")
    assert "is damaged; run `kunlun compile" in opened(artifact, copied)


def test_unknown_engine_and_precision_are_named(artifact: Artifact, copied: Path) -> None:
    with pytest.raises(ArtifactError, match="engine: expected one of openvino, tensorrt, found 'abacus'"):
        open_engine(artifact, engine="abacus", cache=copied, threads_per_slot=1, slots=1)
    with pytest.raises(ArtifactError, match="precision: expected auto, f32 or bf16, found 'f8'"):
        open_engine(artifact, cache=copied, precision="f8", threads_per_slot=1, slots=1)


def test_an_entry_is_replaced_whole_and_a_failed_publish_leaves_the_old_one(
    artifact: Artifact, copied: Path, tmp_path: Path
) -> None:
    entry = next(copied.iterdir())
    manifest = EngineManifest.model_validate_json((entry / ENGINE_MANIFEST).read_bytes())
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    (compiled / "graph.bin").write_bytes(b"new")
    broken = compiled / "a_directory"
    broken.mkdir()
    with pytest.raises(OSError, match="a_directory"):
        publish(copied, artifact, manifest.identity, compiled, manifest.parity, 1.0, 1.0)
    assert load(copied, artifact, manifest.identity) == (entry, manifest), "still whole"
    broken.rmdir()
    assert publish(copied, artifact, manifest.identity, compiled, manifest.parity, 1.0, 1.0) == entry
    assert load(copied, artifact, manifest.identity)[1].files.keys() == {"graph.bin"}
    assert list(copied.iterdir()) == [entry], "nothing is left aside"


def test_nan_fails_parity() -> None:
    assert not ParityFigures(max_probability_error=float("nan"), max_state_error=0.0, gate=1e-5, state_gate=1e-5).passed
    assert ParityFigures(max_probability_error=1e-6, max_state_error=1e-6, gate=1e-5, state_gate=1e-5).passed


def test_nothing_is_published_when_parity_fails(artifact: Artifact, tmp_path: Path) -> None:
    wrong = shutil.copytree(artifact.path, tmp_path / "repository" / "random" / "1")
    golden = load_file(wrong / "golden.safetensors")
    golden["score_candidates/probabilities"] = golden["score_candidates/probabilities"] + np.float32(0.01)
    save_file(golden, wrong / "golden.safetensors")
    built = build_engine(replace(artifact, path=Path(wrong)), cache=tmp_path / "engines", precision="f32", threads=1)
    assert built.path is None
    assert built.parity.max_probability_error == pytest.approx(0.01, rel=1e-2)
    assert not (tmp_path / "engines").exists()


def test_compile_command_reports_and_fills_the_cache(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compile", str(artifact.path), "--precision", "f32", "--cache", str(tmp_path), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parity"]["passed"] is True
    assert report["device_peak_gflops"] > 0
    open_engine(artifact, cache=tmp_path, precision="f32", threads_per_slot=1, slots=1).close()


def test_compile_command_explains_a_wrong_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(tmp_path)]) == 1
    assert "no manifest.json here; expected <repository>/<model>/<version>" in capsys.readouterr().err


def test_compile_command_compiles_what_a_server_will_serve(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "server.yaml"
    repository = artifact.path.parents[1]
    config.write_text(f"repository: {repository}\nengine_cache: {tmp_path / 'engines'}\nprecision: f32\n")
    assert main(["compile", str(artifact.path), "--config", str(config)]) == 2
    assert f"--config: expected no artifact beside it, found {artifact.path}" in capsys.readouterr().err
    assert main(["compile", "--config", str(config), "--threads", "2"]) == 2
    assert "--config: expected no --threads beside it, found 2" in capsys.readouterr().err
    assert main(["compile"]) == 2
    assert "artifact: expected a version directory, or --config, found neither" in capsys.readouterr().err
    assert main(["compile", "--config", str(config), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["precision"], figures["threads"]) == ("f32", 1)
    open_engine(artifact, cache=tmp_path / "engines", precision="f32", threads_per_slot=1, slots=1).close()
