"""Finding and registering the plugin library, and finding NVIDIA's tools: what is said when something is not as it must be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kernels.tensorrt import loader, toolkit
from kernels.tensorrt.loader import PluginError, PluginLibrary, find_plugin, register
from kernels.tensorrt.nodes import NODES
from kernels.tensorrt.toolkit import ToolMissing, find_headers, find_libraries

MANIFEST: dict[str, Any] = {
    "namespace": "kunlun",
    "version": "1",
    "tensorrt": "10.13.3",
    "operators": list(NODES),
    "kernels": {"variants": {"pffn_f32_h2x16_kv8": {"family": "gdpa_forward", "sm": [80, 90]}}},
}


def library(folder: Path, manifest: dict[str, Any]) -> Path:
    """A shared library that says `manifest` of itself."""
    source, built = folder / "library.c", folder / loader.LIBRARY
    source.write_text(f"const char* kunlun_tensorrt_manifest(void) {{ return {json.dumps(json.dumps(manifest))}; }}")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    return built


class Registry:
    """As `tensorrt.IPluginRegistry`: a library makes its operators known, unless it is refused."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.loaded, self.known = refuses, [], set[str]()

    def load_library(self, plugin_path: str) -> object | None:
        if self.refuses:
            return None
        self.loaded.append(plugin_path)
        self.known = set(NODES)
        return object()

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object | None:
        return object() if (type in self.known, version, plugin_namespace) == (True, "1", "kunlun") else None


def test_the_library_is_found_by_path_and_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library(tmp_path, MANIFEST)
    found = find_plugin(path)
    assert (found.path, found.tensorrt, found.kernels) == (path, "10.13.3", {"pffn_f32_h2x16_kv8": (80, 90)})
    monkeypatch.setenv(loader.VARIABLE, str(path))
    assert find_plugin() == found


def test_an_absent_library_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(loader.VARIABLE, raising=False)
    with pytest.raises(
        PluginError, match=r"found none, and KUNLUN_TENSORRT is not set; build it with `python -m kernels.tensorrt build`"
    ):
        find_plugin()


def test_another_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="expected the operators GDPA, PFFN, WindowAttention, SeedPooling in version 1"):
        find_plugin(library(tmp_path, MANIFEST | {"operators": ["GDPA"]}))
    garbage = tmp_path / "garbage.so"
    garbage.write_text("no library")
    with pytest.raises(PluginError, match=r"garbage\.so: expected the TensorRT plugins of kunlun, found .*; build them with"):
        find_plugin(garbage)


def test_plugins_are_registered_once() -> None:
    known, registry = PluginLibrary(Path("/lib.so"), "", "10.13.3", {}), Registry()
    register(known, registry, "10.9.0")
    register(known, registry, "10.9.0")
    assert registry.loaded == ["/lib.so"]


def test_a_library_for_another_tensorrt_is_refused() -> None:
    with pytest.raises(
        PluginError, match=r"built with headers of TensorRT 10\.13\.3, expected those of 11\.x: 11\.1\.0 runs here"
    ):
        register(PluginLibrary(Path("/lib.so"), "", "10.13.3", {}), Registry(), "11.1.0")
    with pytest.raises(PluginError, match=r"TensorRT 10\.9\.0 does not register its plugins"):
        register(PluginLibrary(Path("/lib.so"), "", "10.13.3", {}), Registry(refuses=True), "10.9.0")


def headers_in(folder: Path, version: str) -> None:
    folder.mkdir(parents=True)
    (folder / "NvInfer.h").touch()
    (folder / "NvInferVersion.h").write_text(version)


def test_headers_are_found_with_their_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers_in(
        tmp_path / "include",
        "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n#define TRT_PATCH_ENTERPRISE 2\n"
        "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n",
    )
    (tmp_path / "include/cuda_runtime_api.h").touch()
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR", raising=False)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    monkeypatch.setenv("CUDA_INCLUDE_DIR", str(tmp_path / "include"))
    found = find_headers()
    assert (found.tensorrt, found.version, found.cuda) == (tmp_path / "include", (11, 1, 2), tmp_path / "include")


def test_headers_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers_in(tmp_path / "old", "#define NV_TENSORRT_MAJOR 8 //!< major\n")
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path / "old"))
    with pytest.raises(ToolMissing, match="expected version 10 or 11, found 8"):
        find_headers()


def test_absent_tools_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TENSORRT_INCLUDE_DIR", "TENSORRT_ROOT", "TENSORRT_RTX_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(toolkit, "SYSTEM_ROOTS", ())
    monkeypatch.setattr(toolkit, "WHEEL", "no_such_wheel")
    with pytest.raises(ToolMissing, match=r"headers of TensorRT: no NvInfer\.h in .*; set TENSORRT_ROOT"):
        find_headers()
    with pytest.raises(ToolMissing, match=r"parser and builder: .*; pip install 'kunlun-serving\[trt-check\]'"):
        find_libraries(tmp_path)


def test_libraries_get_the_names_they_open_one_another_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = tmp_path / "root/lib"
    lib.mkdir(parents=True)
    for name in ("libtensorrt_rtx.so.1.7.1", "libtensorrt_onnxparser_rtx.so.1.7.1"):
        (lib / name).touch()
    monkeypatch.setenv("TENSORRT_RTX_ROOT", str(tmp_path / "root"))
    found = find_libraries(tmp_path / "links")
    assert (found.product, found.version) == ("TensorRT-RTX", "1.7.1")
    assert found.folders == (tmp_path / "links", lib)
    names = {f"{name}{end}" for name in ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so") for end in ("", ".1")}
    assert {path.name for path in (tmp_path / "links").iterdir()} == names
    assert found.infer.resolve() == lib / "libtensorrt_rtx.so.1.7.1"
