"""The wheel in a clean environment: the app side works with grpcio and protobuf alone."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_installs_in_a_clean_environment(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("kunlun_serving-*.whl")
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)

    code = "import kunlun.client, kunlun.v1.ranker_pb2 as r; print(kunlun.client.Client, r.RankRequest(user_id='ann').user_id)"
    imported = run("-c", code)
    assert imported.returncode == 0, imported.stderr
    assert "ann" in imported.stdout
    overview = run("-m", "kunlun.cli", "--help")
    assert overview.returncode == 0, overview.stderr
    assert "rank" in overview.stdout
    serve = run("-m", "kunlun.cli", "serve")
    assert serve.returncode == 2
    assert "pip install 'kunlun-serving[cpu]'" in serve.stderr
    held = run("-m", "zipfile", "-l", str(wheel)).stdout
    for needed in (
        "serving/store/append_events.lua",
        "serving/engines/openvino_kernels/pffn_op.cpp",
        "serving/engines/openvino_kernels/pffn_kernel.cpp",
        "serving/engines/openvino_kernels/pffn_kernel.hpp",
        "model/presets/tiny.yaml",
        "kunlun/py.typed",
        "loadtest/configs/demo_synthetic.yaml",
    ):
        assert needed in held
