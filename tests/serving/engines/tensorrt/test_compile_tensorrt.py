"""`kunlun compile --target tensorrt`: an engine where there is a GPU; where there is none, all but that, and what remains."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from kernels.tensorrt.bodies import attributes_of
from kernels.tensorrt.nodes import DOMAIN, PFFN, parse
from kunlun.cli import main
from model.artifact import Artifact
from model.signature import JAGGED_ENCODE
from serving.cli import compile_tensorrt
from serving.config import load_config
from serving.core.options import CoreOptions
from serving.engines.backed import BackedEngine
from serving.engines.open import open_engine
from serving.engines.tensorrt.open import NoRuntime, nvidia_runtime
from serving.engines.tensorrt.work import WorkPlan
from serving.tuning import engine_work
from tests.serving.engines.tensorrt.stand_in import StandInRuntime


def compiled(artifact: Artifact, cache: Path, *more: str) -> int:
    return main(["compile", str(artifact.path), "--target", "tensorrt", "--cache", str(cache), *more])


def kernels_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_work, "problem", lambda *_: None)


def test_what_has_no_kernel_runs_on_padded_rows(artifact: Artifact) -> None:
    """`tiny` with 16 generated keys is in no table of kernels; the reason is part of what `kunlun compile` says."""
    work = engine_work.engine_work(artifact, CoreOptions(), "bf16")
    assert not work.is_jagged
    assert work.encode_user.buckets[0] == {"U": 1, "T_click": 8, "T_impression": 8}
    assert (engine_work.padded_because(artifact, "bf16") or "").startswith("PFFN: no kernel pffn_bf16_h2x16_kv16 is shipped; ")


def test_a_configuration_names_the_operators_of_its_exported_graph(artifact: Artifact) -> None:
    nodes = [node for node in onnx.load(artifact.graph(JAGGED_ENCODE)).graph.node if node.domain == DOMAIN]
    parsed = [parse(node.op_type, attributes_of(node)) for node in nodes]
    called = [call.node for call in artifact.config.ragged_calls(artifact.schema)]
    assert {node.op_type for node in parsed} == {node.op_type for node in called} == {"PFFN", "SeedPooling", "WindowAttention"}
    found = {(node.n_kv, node.activation) for node in parsed if isinstance(node, PFFN)}
    assert found == {(node.n_kv, node.activation) for node in called if isinstance(node, PFFN)}


def test_without_a_gpu_everything_else_is_done_and_the_rest_is_said(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> None:
        raise NoRuntime("device: expected an NVIDIA GPU, found none")

    monkeypatch.setattr(compile_tensorrt, "nvidia_runtime", absent)
    kernels_for_everything(monkeypatch)
    assert compiled(artifact, tmp_path, "--json") == compile_tensorrt.NOT_BUILT
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["engine"] is None
    assert report["not_built"] == "device: expected an NVIDIA GPU, found none"
    assert f"kunlun compile {artifact.path} --target tensorrt --precision bf16" in report["remains"][0]
    assert report["parity_on_cpu"]["passed"]
    encode = report["graphs"]["encode_user"]
    assert encode["form"] == "jagged"
    assert encode["plugins"] == {"kunlun.PFFN": 4, "kunlun.SeedPooling": 4, "kunlun.WindowAttention": 2}
    prepared = Path(report["prepared"])
    names = {"encode_user.onnx", "encode_user.weights", "score_candidates.onnx", "score_candidates.weights"}
    assert {file.name for file in prepared.iterdir()} == names | {"prepared.json", "work.json"}
    assert WorkPlan.model_validate_json((prepared / "work.json").read_text()).is_jagged


def test_on_a_gpu_an_engine_is_published(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compile_tensorrt, "nvidia_runtime", StandInRuntime)
    kernels_for_everything(monkeypatch)
    monkeypatch.setattr("serving.engines.tensorrt.build.PROBE_WIDTH", 64)
    config = tmp_path / "server.yaml"
    core = {"max_batch_candidates": 64, "max_batch_requests": 2, "max_batch_users": 1}
    config.write_text(
        json.dumps(
            {
                "repository": str(artifact.path.parents[1]),
                "engine": "tensorrt",
                "engine_cache": str(tmp_path / "cache"),
                "precision": "f16",
                "core": core,
            }
        )
    )
    monkeypatch.setattr("serving.engines.tensorrt.open.nvidia_runtime", StandInRuntime)
    assert main(["compile", "--config", str(config), "--json"]) == 0
    served = load_config(config, {})
    work = engine_work.engine_work(artifact, served.core, "f16")
    engine = open_engine(
        artifact,
        engine="tensorrt",
        cache=tmp_path / "cache",
        precision="f16",
        threads_per_slot=1,
        slots=1,
        work=work,
        backup=served.backup_engine,
    )
    assert isinstance(engine, BackedEngine), "what is compiled of a configuration is all that serving with it opens"
    engine.close()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["parity"]["passed"]
    assert report["precision"] == "f16"
    assert report["work"] == {
        "encode_user": {"buckets": 6, "profiles": 1},
        "score_candidates": {"buckets": 12, "profiles": 3},
        "form": "jagged",
        "padded_because": None,
    }
    assert (Path(report["engine"]) / "encode_user.plan").is_file()


def test_this_machine_says_what_it_lacks() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine may have all it needs")
    with pytest.raises(NoRuntime, match=r"expected .*, found"):
        nvidia_runtime()
