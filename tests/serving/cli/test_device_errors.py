"""A GPU that fails while a command starts is said in one line, as every other thing that the user can look after."""

from __future__ import annotations

from pathlib import Path

import pytest

from kunlun.cli import main
from model.artifact import Artifact
from serving.cli import compile_tensorrt
from serving.engines.base import DeviceError

REASON = "CUDA: cudaErrorMemoryAllocation: out of memory"


def broken() -> None:
    raise DeviceError(REASON)


def test_compile_says_it(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compile_tensorrt, "nvidia_runtime", broken)
    assert main(["compile", str(artifact.path), "--target", "tensorrt", "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"kunlun compile: {REASON}\n"


def test_serve_says_it(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("serving.server.gpu_slots", broken)
    assert main(["serve", "--repository", str(artifact.path.parents[1]), "--engine", "tensorrt"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"kunlun serve: {REASON}"
