"""The plugin library from Python: found, checked and registered before any engine is parsed or deserialised. No torch here."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kernels.tensorrt.nodes import NODES, PLUGIN

LIBRARY = "libkunlun_tensorrt.so"
VARIABLE = "KUNLUN_TENSORRT"
"""Environment variable: path of the library."""
DEFAULT = Path("build/tensorrt") / LIBRARY
BUILD = "`python -m kernels.tensorrt build` (TENSORRT_ROOT names TensorRT's headers)"


class PluginError(RuntimeError):
    """The library is absent, cannot be loaded or is not the one expected; the message says what to do."""


class Registry(Protocol):
    """`tensorrt.IPluginRegistry`, as far as it is used."""

    def load_library(self, plugin_path: str) -> Any: ...
    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any: ...


@dataclass(frozen=True)
class PluginLibrary:
    """A library that fits this code. `sha256` covers plugins and kernels; `tensorrt`: version of the headers it was built with.

    `kernels`: names of the kernel variants inside and their compute capabilities (90 for 9.0).
    """

    path: Path
    sha256: str
    tensorrt: str
    kernels: dict[str, tuple[int, ...]]


def find_plugin(path: Path | None = None) -> PluginLibrary:
    """The library at `path`, else the one that KUNLUN_TENSORRT names, else build/tensorrt's. Raises `PluginError`."""
    asked = path or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    file = (asked or DEFAULT).absolute()
    if not file.is_file():
        why = "" if asked else f", and {VARIABLE} is not set"
        raise PluginError(
            f"TensorRT plugins: expected the library {file}, found none{why}; build it with {BUILD}, or set {VARIABLE}"
        )
    manifest = _manifest(file)
    held, expected = manifest.get("operators"), list(NODES)
    if held != expected or (manifest.get("namespace"), manifest.get("version")) != tuple(PLUGIN.values()):
        raise PluginError(
            f"{file}: expected the operators {', '.join(expected)} in version {PLUGIN['plugin_version']} of the namespace "
            f"{PLUGIN['plugin_namespace']}, found {manifest}; build it again with {BUILD}"
        )
    variants = {name: tuple(entry["sm"]) for name, entry in manifest["kernels"]["variants"].items()}
    return PluginLibrary(file, hashlib.sha256(file.read_bytes()).hexdigest(), manifest["tensorrt"], variants)


def register(library: PluginLibrary, registry: Registry, tensorrt: str) -> None:
    """Make the plugins known to `registry` (`tensorrt.get_plugin_registry()`) of the TensorRT whose version is `tensorrt`.

    Idempotent. Raises `PluginError` where the library was built for another major version, or is refused.
    """
    built, running = (version.split(".")[0] for version in (library.tensorrt, tensorrt))
    if built != running:
        raise PluginError(
            f"{library.path}: built with headers of TensorRT {library.tensorrt}, expected those of {running}.x: "
            f"{tensorrt} runs here; build it with {BUILD}"
        )
    if all(_is_known(registry, operator) for operator in NODES):
        return
    if registry.load_library(str(library.path)) is None or not all(_is_known(registry, operator) for operator in NODES):
        raise PluginError(
            f"{library.path}: TensorRT {tensorrt} does not register its plugins; its log says why. Is an older library of the "
            f"same operators loaded in this process?"
        )


def _is_known(registry: Registry, operator: str) -> bool:
    return registry.get_creator(operator, PLUGIN["plugin_version"], PLUGIN["plugin_namespace"]) is not None


def _manifest(file: Path) -> dict[str, Any]:
    try:
        library = ctypes.CDLL(str(file), mode=ctypes.RTLD_LOCAL)
        entry = library.kunlun_tensorrt_manifest
    except (OSError, AttributeError) as error:
        raise PluginError(f"{file}: expected the TensorRT plugins of kunlun, found {error}; build them with {BUILD}") from error
    entry.restype = ctypes.c_char_p
    found: dict[str, Any] = json.loads(entry())
    return found
