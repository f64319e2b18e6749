"""The walls: imports only go down, the server needs no torch, the app side needs grpcio and protobuf alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "kernels": {"kernels"},
    "model": {"model", "kernels", "kunlun"},
    "serving": {"serving", "model", "kernels", "kunlun"},
    "loadtest": {"loadtest", "serving", "model", "kernels", "kunlun"},
    "kunlun": {"kunlun"},
}
COMPILES = {f"serving.engines.tensorrt.{name}" for name in ("build", "prepare", "typed_graph")}
"""Read graphs before they are built: `kunlun compile` imports them, a server does not."""
NEEDS_TENSORRT = "serving.engines.tensorrt.nvidia"
ROOMS = {name: ROOT / "proto" / "kunlun" if name == "kunlun" else ROOT / name for name in ALLOWED}


def test_test_files_have_names_of_their_own() -> None:
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest imports test files by their bare names"


def imported(file: Path) -> set[str]:
    """Absolute names of every module a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_only_go_down(room: str) -> None:
    for file in ROOMS[room].rglob("*.py"):
        for name in imported(file):
            top = name.split(".")[0]
            assert top not in ALLOWED or top in ALLOWED[room], f"{file.relative_to(ROOT)} imports {name}"
            if room == "model" and top == "kunlun":
                assert name == "kunlun.cli", f"{file.relative_to(ROOT)} imports {name}"


def test_inside_serving_protocol_calls_core_and_core_knows_neither_grpc_nor_device() -> None:
    for file in (ROOT / "serving" / "core").rglob("*.py"):
        for name in imported(file):
            assert not name.startswith(("grpc", "serving.protocol", "kunlun")), f"{file.name} imports {name}"
            assert not name.startswith(("openvino", "redis")), f"{file.name} imports {name}"
            assert not name.startswith("serving.engines") or name == "serving.engines.base", f"{file.name} imports {name}"
    for file in (ROOT / "serving" / "protocol").rglob("*.py"):
        for name in imported(file):
            assert not name.startswith(("serving.engines", "openvino", "redis")), f"{file.name} imports {name}"


def _modules_after(code: str) -> set[str]:
    listing = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_no_module_of_the_server_imports_torch() -> None:
    files = [f for f in (ROOT / "serving").rglob("*.py") if f.name != "__init__.py"]
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files} - {NEEDS_TENSORRT}
    loaded = _modules_after("\n".join(f"import {name}" for name in sorted(names - COMPILES)))
    assert "openvino" in loaded
    assert not {"torch", "onnx", "onnxscript", "triton", "pandas"} & loaded
    compiling = _modules_after("\n".join(f"import {name}" for name in sorted(COMPILES)))
    assert not {"torch", "onnxscript", "triton", "pandas"} & compiling


def test_the_client_imports_grpc_and_protobuf_alone() -> None:
    loaded = _modules_after("import kunlun.client, kunlun.rank, kunlun.cli")
    heavy = {"numpy", "pydantic", "yaml", "rich", "pyarrow", "redis", "openvino", "torch", "xxhash", "safetensors"}
    assert {"grpc", "google"} <= loaded
    assert not heavy & loaded


def test_the_committed_stubs_are_those_of_the_proto_files(tmp_path: Path) -> None:
    sources = sorted((ROOT / "proto/kunlun/v1").glob("*.proto"))
    flags = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    arguments = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        *flags,
        *(str(s.relative_to(ROOT / "proto")) for s in sources),
    ]
    subprocess.run(arguments, cwd=ROOT / "proto", check=True, capture_output=True)
    made = sorted((tmp_path / "kunlun/v1").iterdir())
    assert len(made) == 3 * len(sources)
    for file in made:
        committed = ROOT / "proto/kunlun/v1" / file.name
        assert file.read_text() == committed.read_text(), f"{file.name}: run `make proto`"
