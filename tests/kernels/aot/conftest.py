"""One small launcher library for all tests here: real kernels, three compute capabilities, built once."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_driver import build

from kernels.aot.build import compile_jobs, link_library
from kernels.aot.compiler import Compiled
from kernels.aot.jobs import selected_jobs

NAMES = (
    "gdpa_bf16_h2x64_kv64",
    "pffn_f16_h2x64_kv64",
    "gdpa_bf16_h2x64_kvlong",
    "window_bf16_h2x64",
    "seed_pooling_f16_h2x64",
)
SMS = (80, 90, 100)


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def compiled(build_folder: Path) -> list[Compiled]:
    return compile_jobs(selected_jobs(SMS, NAMES), build_folder)


@pytest.fixture(scope="session")
def library_path(compiled: list[Compiled], build_folder: Path) -> Path:
    return link_library(compiled, build_folder, "0.0.0")


@pytest.fixture(scope="session")
def fake_libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))
