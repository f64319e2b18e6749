"""Builds libkunlun_kernels.so: compile the variants, generate the table, call the C++ compiler. No CUDA toolkit, no GPU.

build/kernels/triton/       Triton's cache, keyed by content: unchanged kernels are not compiled again
build/kernels/generated/    images, images.S, table.cpp
build/kernels/libkunlun_kernels.so, kunlun_kernels.h
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels.aot.codegen import write_sources
from kernels.aot.compiler import Compiled, Job, compile_all

LIBRARY = "libkunlun_kernels.so"
SOURCES = Path(__file__).parent / "src"
HEADER = Path(__file__).parent / "include" / "kunlun_kernels.h"
# No exceptions and no C++ runtime: the library needs libc alone, so it loads beside any version of libstdc++.
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
LINK = ("-shared", "-nodefaultlibs", "-Wl,--no-undefined", "-Wl,-z,relro,-z,now", f"-Wl,-soname,{LIBRARY}", "-lc", "-lgcc")


def compile_jobs(jobs: Sequence[Job], folder: Path, progress: Callable[[Compiled], None] = lambda _: None) -> list[Compiled]:
    """Compiles `jobs` with the cache in `folder`; `progress` sees each result."""
    compiled = []
    for unit in compile_all(jobs, folder / "triton"):
        compiled.append(unit)
        progress(unit)
    return compiled


def link_library(compiled: Sequence[Compiled], folder: Path, version: str) -> Path:
    """The library of `compiled` in `folder`, with its header beside it.

    Needs a C++17 compiler (`CXX`, default c++). Raises `RuntimeError` with the compiler's words when it fails.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"CXX: expected a C++17 compiler, {compiler!r} is not on the path; install g++ or set CXX")
    generated = folder / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    sources = write_sources(compiled, generated, version)
    hand_written = sorted(SOURCES.glob("*.cpp"))
    library = folder / LIBRARY
    command = [compiler, *FLAGS, *WARNINGS, f"-I{HEADER.parent}", f"-I{SOURCES}", *map(str, hand_written)]
    command += [*(source.name for source in sources), "-o", str(library.resolve()), *LINK]
    done = subprocess.run(command, cwd=generated, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} failed on the launcher library:\n{done.stderr}")
    shutil.copyfile(HEADER, folder / HEADER.name)
    return library
