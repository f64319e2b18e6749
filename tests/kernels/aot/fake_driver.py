"""A libcuda.so.1 that records instead of launching (`fake_driver.c`), for the launcher library on machines without a GPU.

`in_driver_process` runs a function in a fresh process where it is the driver: its soname is loaded first, so the library's
own dlopen finds it.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kernels.aot.cubin import Cubin, read_cubin
from kernels.aot.library import KernelLibrary


def build(folder: Path) -> Path:
    library = folder / "libcuda.so.1"
    source = Path(__file__).with_name("fake_driver.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wno-pointer-to-int-cast", "-Wl,-soname,libcuda.so.1", str(source), "-o"]
    subprocess.run([*command, str(library)], check=True)
    return library


def in_driver_process(scenario: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(scenario, *arguments).result()


class Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_ulonglong),
        ("function", ctypes.c_ulonglong),
        ("parameters", ctypes.c_ubyte * 512),
    )


class FakeDriver:
    """The driver of this process. Make it before the first call that needs a driver."""

    def __init__(self, path: Path, sm: int = 80) -> None:
        self._library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self.set("fake_major", sm // 10)
        self.set("fake_minor", sm % 10)

    def set(self, name: str, value: int) -> None:
        kind = ctypes.c_ulonglong if name.startswith("fake_context") else ctypes.c_int
        kind.in_dll(self._library, name).value = value

    def get(self, name: str) -> int:
        return ctypes.c_int.in_dll(self._library, name).value

    def image(self, module: int) -> bytes:
        """The bytes handed over for a module: a whole ELF file, or text up to its final NUL."""
        address = (ctypes.c_void_p * 64).in_dll(self._library, "fake_images")[module]
        if ctypes.string_at(address, 4) != b"\x7fELF":
            return ctypes.string_at(address)
        header = ctypes.string_at(address, 64)
        sections, entry, count = struct.unpack_from("<Q", header, 40)[0], *struct.unpack_from("<HH", header, 58)
        size = sections + entry * count
        programs, entry, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        return ctypes.string_at(address, max(size, programs + entry * count))

    def expect_parameters(self, module: int) -> Cubin:
        """From now on parameters are copied by the layout that this module's cubin declares."""
        info = read_cubin(self.image(module))
        for name, values in (("fake_sizes", "size"), ("fake_offsets", "offset")):
            array = (ctypes.c_uint * 64).in_dll(self._library, name)
            for parameter in info.parameters:
                array[parameter.ordinal] = getattr(parameter, values)
        self.set("fake_parameter_count", len(info.parameters))
        return info

    def dynamic_shared(self, function: int) -> int:
        return (ctypes.c_int * 64).in_dll(self._library, "fake_dynamic_shared")[function]

    def last(self) -> Launch:
        return Launch.in_dll(self._library, "fake_last")


def with_driver(fake: Path, library: Path, sm: int = 80) -> tuple[FakeDriver, KernelLibrary]:
    driver = FakeDriver(fake, sm)
    return driver, KernelLibrary(library)
