"""Compiles the kernels against the installed OpenVINO, with the machine's own C++ compiler (`CXX`, else g++, c++ or clang++).

Run by `kunlun compile`, five to fifteen seconds once per user and version (`~/.cache/kunlun`); the library lies in the engine
cache entry, with the entry's digests. It holds AVX-512 and AMX code beside each other and looks at the CPU when it is asked
what it can do.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from enum import IntEnum
from pathlib import Path

import openvino as ov

SOURCES = ("pffn_kernel.hpp", "pffn_kernel.cpp", "pffn_op.cpp")
LIBRARY = "kernels.so"
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-w")
_HERE = Path(__file__).parent


class Kernels(IntEnum):
    """What a library's kernels can do on this CPU."""

    NONE = 0
    F32 = 1
    BF16 = 2


def source_digest() -> str:
    """Twelve hex digits: engines built from other sources are other engines."""
    return hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:12]


def build(directory: Path) -> str:
    """Compile into `directory`; returns what came of it, for people. A machine without a compiler gets no library."""
    compiler = _compiler()
    if compiler is None:
        return "none: no C++ compiler (g++, c++, clang++ or CXX)"
    home = Path(ov.__file__).parent
    library = next((home / "libs").glob("libopenvino.so*"), None)
    threads = next((home / "libs").glob("libtbb.so*"), None)
    if library is None or threads is None or not (home / "include").is_dir():
        return f"none: {home} has no headers or libraries to build against"
    target = directory / LIBRARY
    command = [compiler, *_FLAGS, f"-I{home / 'include'}", f"-I{home / 'include' / 'tbb'}"]
    command += [str(_HERE / name) for name in SOURCES if name.endswith(".cpp")]
    command += [f"-L{home / 'libs'}", f"-l:{library.name}", f"-l:{threads.name}", "-o", str(target)]
    kept = _kept(compiler, library.name)
    if kept.is_file():
        shutil.copyfile(kept, target)
    else:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            target.unlink(missing_ok=True)
            return f"none: {Path(compiler).name} failed: {(done.stderr.strip().splitlines() or ['no output'])[0]}"
        _keep(target, kept)
    able = load(target)
    if able is Kernels.NONE:
        target.unlink()
        return "none: this CPU has no AVX-512"
    return f"PFFN block ({'AVX-512 and AMX' if able is Kernels.BF16 else 'AVX-512'})"


def load(library: Path) -> Kernels:
    """Load for good (operations live in it) and ask what it can do here."""
    return Kernels(ctypes.CDLL(str(library)).kunlun_kernels())


def _kept(compiler: str, openvino: str) -> Path:
    """Where a library of these sources, this compiler and this OpenVINO is kept."""
    parts = (source_digest(), compiler, openvino, str(ov.__version__), *_FLAGS)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kunlun" / f"kernels-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"


def _keep(built: Path, kept: Path) -> None:
    """A copy for the next build; a home that cannot be written to only costs time."""
    aside = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, aside)
        aside.rename(kept)
    except OSError:
        aside.unlink(missing_ok=True)


def _compiler() -> str | None:
    named = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++", "clang++"]
    return next((path for name in named if (path := shutil.which(name))), None)
