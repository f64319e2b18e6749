"""Compiles the kernels against the installed OpenVINO, with the machine's own C++ compiler (`CXX`, else g++, c++ or clang++).

Run by `kunlun compile --fused-block`, five to fifteen seconds, and never by a server: the library lies in the engine cache
entry, among the files whose digests the entry is checked by. It holds AVX-512 and AMX code beside each other and looks at the
CPU when it is asked what it can do.
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


class KernelsUnavailable(Exception):
    """The kernels cannot be built or run on this machine; the message says what was expected and found."""


class Kernels(IntEnum):
    """What a library's kernels can do on this CPU."""

    F32 = 1
    BF16 = 2


def source_digest() -> str:
    """Twelve hex digits: engines built from other sources are other engines."""
    return hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:12]


def build(directory: Path) -> str:
    """Compile into `directory`; returns what was built, for people. Raises `KernelsUnavailable` and leaves no library."""
    compiler = _compiler()
    home = Path(ov.__file__).parent
    library = next((home / "libs").glob("libopenvino.so*"), None)
    threads = next((home / "libs").glob("libtbb.so*"), None)
    if library is None or threads is None or not (home / "include").is_dir():
        raise KernelsUnavailable(f"expected OpenVINO's headers, libopenvino and libtbb below {home}, as its wheel has them")
    target = directory / LIBRARY
    command = [compiler, *_FLAGS, f"-I{home / 'include'}", f"-I{home / 'include' / 'tbb'}"]
    command += [str(_HERE / name) for name in SOURCES if name.endswith(".cpp")]
    command += [f"-L{home / 'libs'}", f"-l:{library.name}", f"-l:{threads.name}", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        target.unlink(missing_ok=True)
        raise KernelsUnavailable(f"{Path(compiler).name} failed: {(done.stderr.strip().splitlines() or ['no output'])[0]}")
    try:
        able = load(target)
    except KernelsUnavailable:
        target.unlink()
        raise
    return f"PFFN block ({'AVX-512 and AMX' if able is Kernels.BF16 else 'AVX-512'})"


def load(library: Path) -> Kernels:
    """Load for good (operations live in it) and ask what it can do here. Raises `KernelsUnavailable`."""
    if not library.is_file():
        raise KernelsUnavailable(f"expected the compiled kernels at {library}, found none")
    try:
        able = int(ctypes.CDLL(str(library)).kunlun_kernels())
    except OSError as error:
        raise KernelsUnavailable(f"{library} cannot be loaded: {error}") from error
    if able == 0:
        raise KernelsUnavailable("expected a CPU with AVX-512, found one without")
    return Kernels(able)


def _compiler() -> str:
    """Path of the compiler."""
    named = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++", "clang++"]
    found = next((path for name in named if (path := shutil.which(name))), None)
    if found is None:
        raise KernelsUnavailable(f"expected a C++17 compiler ({', '.join(named)}), found none; install one or set CXX")
    return found
