"""Builds the plugin library and the check program by CMake. Needs cmake, a C++17 compiler and NVIDIA's headers; no GPU.

build/tensorrt/libkunlun_tensorrt.so     the plugins, with the kernels of build/kernels inside
build/tensorrt/kunlun_tensorrt_check     asks NVIDIA's parser and builder about an ONNX file (kernels/tensorrt/check)
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kernels.tensorrt.loader import LIBRARY
from kernels.tensorrt.toolkit import Headers, ToolMissing

SOURCES = Path(__file__).parent
CHECK = "kunlun_tensorrt_check"


def build_plugin(headers: Headers, generated: Path, folder: Path) -> Path:
    """The plugin library in `folder`, with the kernels whose sources are in `generated` (`make kernels` writes them).

    Raises `RuntimeError` with the tools' words, `ToolMissing` without cmake.
    """
    _configure(headers, folder, f"-DKUNLUN_GENERATED={generated.absolute()}")
    try:
        _run("cmake", "--build", str(folder), "--target", "kunlun_tensorrt", "--parallel")
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{generated} may be older than this code: run `make kernels` again") from error
    return folder / LIBRARY


def build_check(headers: Headers, generated: Path, folder: Path) -> Path:
    """The check program in `folder`; raises as `build_plugin`, and `ToolMissing` where headers have no ONNX parser."""
    if not (headers.tensorrt / "NvOnnxParser.h").is_file():
        raise ToolMissing(
            f"headers of the ONNX parser: no NvOnnxParser.h in {headers.tensorrt}; use those of TensorRT 10.14 or later"
        )
    _configure(headers, folder, f"-DKUNLUN_GENERATED={generated.absolute()}")
    _run("cmake", "--build", str(folder), "--target", CHECK, "--parallel")
    return folder / CHECK


def _configure(headers: Headers, folder: Path, *more: str) -> None:
    if shutil.which("cmake") is None:
        raise ToolMissing("cmake: not on the path; install it (Debian package or wheel `cmake`)")
    generator = ["-G", "Ninja"] if shutil.which("ninja") and not (folder / "CMakeCache.txt").exists() else []
    _run(
        "cmake", *generator, "-S", str(SOURCES), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release",
        f"-DTENSORRT_INCLUDE_DIR={headers.tensorrt}", f"-DCUDA_INCLUDE_DIR={headers.cuda}", *more,
    )  # fmt: skip


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
