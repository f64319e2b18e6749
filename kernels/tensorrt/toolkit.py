"""Finds what NVIDIA ships and this project does not: headers of TensorRT and CUDA, and the libraries with the ONNX parser.

Headers come with TensorRT's packages and containers, and with the public repository NVIDIA/TensorRT (`include/`). Parser and
builder come with TensorRT, or with TensorRT for RTX, whose libraries are in the wheel of ONNX Runtime's provider and build
plans without a GPU. Everything here only looks; `ToolMissing` says what was looked for, where, and how to get it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SYSTEM_ROOTS = ("/usr/local/tensorrt", "/opt/tensorrt", "/usr")
WHEEL = "onnxruntime_ep_nv_tensorrt_rtx"


class ToolMissing(Exception):
    """Something of NVIDIA's that is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Headers:
    """`tensorrt`: folder of NvInfer.h, of `version`; `cuda`: folder of cuda_runtime_api.h."""

    tensorrt: Path
    version: tuple[int, int, int]
    cuda: Path


@dataclass(frozen=True)
class Libraries:
    """Parser and builder. `folders` must be on LD_LIBRARY_PATH: both open other libraries by their plain names."""

    product: str
    version: str
    infer: Path
    parser: Path

    @property
    def folders(self) -> tuple[Path, Path]:
        return self.infer.parent, self.infer.resolve().parent


def find_headers() -> Headers:
    """Headers of TensorRT 10 or 11 and of CUDA; raises `ToolMissing`."""
    folders = [*_from_environment("TENSORRT_INCLUDE_DIR"), *_includes(_from_environment("TENSORRT_ROOT"))]
    folders += _includes(Path(root) for root in SYSTEM_ROOTS)
    tensorrt = _first(folders, "NvInfer.h")
    if tensorrt is None:
        raise ToolMissing(
            "headers of TensorRT: no NvInfer.h in TENSORRT_INCLUDE_DIR, TENSORRT_ROOT/include or the system's folders; set "
            "TENSORRT_ROOT to an installation of TensorRT 10 or 11, or to a checkout of github.com/NVIDIA/TensorRT"
        )
    return Headers(tensorrt, header_version(tensorrt), _cuda())


def find_libraries(links: Path) -> Libraries:
    """The libraries of TensorRT for RTX, which need no GPU, else TensorRT's; `links`: folder for names that they lack.

    Raises `ToolMissing`.
    """
    folders = _libs(_from_environment("TENSORRT_RTX_ROOT"))
    if (wheel := importlib.util.find_spec(WHEEL)) is not None:
        folders += [Path(location) for location in wheel.submodule_search_locations or []]
    folders += _libs([*_from_environment("TENSORRT_ROOT"), *map(Path, SYSTEM_ROOTS)])
    for folder in folders:
        for product, infer, parser in (
            ("TensorRT-RTX", "libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"),
            ("TensorRT", "libnvinfer.so", "libnvonnxparser.so"),
        ):
            found = [_newest(folder, name) for name in (infer, parser)]
            if all(found):
                return _linked(product, [path for path in found if path is not None], links)
    raise ToolMissing(
        "parser and builder: no libtensorrt_rtx.so or libnvinfer.so beside an ONNX parser in TENSORRT_RTX_ROOT, TENSORRT_ROOT "
        "or installed packages; pip install 'kunlun-serving[trt-check]', or set one of these to an installation"
    )


def header_version(folder: Path) -> tuple[int, int, int]:
    """Version of NvInfer.h in `folder`; raises `ToolMissing` where it is neither 10 nor 11."""
    text = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
    numbers = []
    for part in ("MAJOR", "MINOR", "PATCH"):
        found = re.search(rf"define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE) (\d+)", text)
        numbers.append(int(found.group(1)) if found else 0)
    if numbers[0] not in (10, 11):
        raise ToolMissing(f"headers of TensorRT: expected version 10 or 11, found {numbers[0]} in {folder}")
    return numbers[0], numbers[1], numbers[2]


def _cuda() -> Path:
    folders = [
        *_from_environment("CUDA_INCLUDE_DIR"),
        *_includes(_from_environment("CUDA_HOME")),
        Path("/usr/local/cuda/include"),
    ]
    if (wheels := importlib.util.find_spec("nvidia")) is not None:
        for location in wheels.submodule_search_locations or []:
            folders += sorted(Path(location).glob("*/include"))
    found = _first(folders, "cuda_runtime_api.h")
    if found is None:
        raise ToolMissing(
            "headers of CUDA: no cuda_runtime_api.h in CUDA_INCLUDE_DIR, CUDA_HOME/include, /usr/local/cuda/include or "
            "installed packages; pip install 'kunlun-serving[trt-check]', or set CUDA_HOME"
        )
    return found


def _from_environment(variable: str) -> list[Path]:
    value = os.environ.get(variable)
    return [Path(value)] if value else []


def _includes(roots: Iterable[Path]) -> list[Path]:
    return [folder for root in roots for folder in (root / "include", root / "include/x86_64-linux-gnu")]


def _libs(roots: Iterable[Path]) -> list[Path]:
    return [folder for root in roots for folder in (root / "lib", root / "lib/x86_64-linux-gnu", root)]


def _first(folders: Iterable[Path], file: str) -> Path | None:
    return next((folder for folder in folders if (folder / file).is_file()), None)


def _newest(folder: Path, name: str) -> Path | None:
    """`name` with the longest version behind it: the file itself, not a link to it."""
    return max(folder.glob(f"{name}*"), key=lambda path: len(path.name), default=None)


def _linked(product: str, files: list[Path], links: Path) -> Libraries:
    """Libraries under the names that they open one another by: `name.so` and `name.so.<major>`."""
    links.mkdir(parents=True, exist_ok=True)
    version = ""
    for file in files:
        plain, _, version = file.name.partition(".so.")
        for name in (f"{plain}.so", f"{plain}.so.{version.split('.')[0]}"):
            link = links / name
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
    infer, parser = (links / f"{file.name.partition('.so')[0]}.so" for file in files)
    return Libraries(product, version, infer.absolute(), parser.absolute())
