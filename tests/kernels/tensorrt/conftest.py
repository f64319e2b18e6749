"""The plugin library and the check program, built once where NVIDIA's headers are found; absent tools are named in skips."""

from __future__ import annotations

from pathlib import Path

import pytest
from smallest import HEADS, WIDTH

from kernels.aot.build import compile_jobs, link_library
from kernels.aot.catalogue import variants
from kernels.aot.compiler import Job
from kernels.tensorrt.build import build_check, build_plugin
from kernels.tensorrt.toolkit import Headers, Libraries, ToolMissing, find_headers, find_libraries


@pytest.fixture(scope="session")
def headers() -> Headers:
    try:
        return find_headers()
    except ToolMissing as missing:
        pytest.skip(f"not verified: {missing}")


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    smallest = [v for v in variants(80) if f"f32_h{HEADS}x{WIDTH}" in v.name]
    link_library(compile_jobs([Job(v, 80) for v in smallest], folder), folder, "0.0.0")
    return folder / "generated"


@pytest.fixture(scope="session")
def plugin(headers: Headers, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_plugin(headers, generated, tmp_path_factory.mktemp("tensorrt"))
    except ToolMissing as missing:
        pytest.skip(f"not verified: {missing}")


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    try:
        return find_libraries(tmp_path_factory.mktemp("libraries"))
    except ToolMissing as missing:
        pytest.skip(f"not verified: {missing}")


@pytest.fixture(scope="session")
def check(headers: Headers, libraries: Libraries, plugin: Path, generated: Path) -> Path:
    try:
        return build_check(headers, generated, plugin.parent)
    except ToolMissing as missing:
        pytest.skip(f"not verified: {missing}")
