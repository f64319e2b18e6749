"""The launcher library from Python: its parameter structs as ctypes, its status codes as one exception. No torch here.

Field names, order and types are those of `kunlun_kernels.h`; the library refuses a struct whose size differs, and
`tests/kernels/aot/test_library.py` compares every offset with the C compiler's.
"""

from __future__ import annotations

import ctypes
import enum
import json
from ctypes import c_char_p, c_float, c_int, c_int32, c_uint32, c_void_p
from pathlib import Path
from typing import Any

ABI = 1


class Status(enum.IntEnum):
    """`kunlun_status`."""

    OK = 0
    INVALID_ARGUMENT = 1
    BAD_VERSION = 2
    UNSUPPORTED_VARIANT = 3
    NO_DRIVER = 4
    UNSUPPORTED_DEVICE = 5
    NO_CONTEXT = 6
    NOT_PREPARED = 7
    DRIVER_ERROR = 8


class KernelError(RuntimeError):
    """A call that the library refused or the driver failed; `status` says which, the message what to change."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name.lower()}: {message}")
        self.status = status


class GDPAParams(ctypes.Structure):
    """`kunlun_gdpa_params`: device addresses as integers, counts and scales. `version` is set by the constructor."""

    _fields_ = (
        ("version", c_uint32),
        ("dtype", c_int32),
        ("activation", c_int32),
        ("block", c_int32),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("out", c_void_p),
        ("q_offsets", c_void_p),
        ("q_lengths", c_void_p),
        ("k_offsets", c_void_p),
        ("kv_index", c_void_p),
        ("units", c_void_p),
        ("unit_count", c_int32),
        ("max_length", c_int32),
        ("samples", c_int32),
        ("heads", c_int32),
        ("head_width", c_int32),
        ("n_kv", c_int32),
        ("scale_in", c_float),
        ("scale_out", c_float),
        ("eps", c_float),
        ("reserved", c_uint32),
    )

    def __init__(self, **fields: Any) -> None:
        super().__init__(version=(1 << 24) | ctypes.sizeof(type(self)), **fields)


DTYPES = {"f32": 0, "f16": 1, "bf16": 2}
ACTIVATIONS = ("raw", "relu", "leaky_relu", "relu_square", "gelu", "fast_gelu", "silu", "hardswish")


class KernelLibrary:
    """libkunlun_kernels.so at `path`. Loading needs no driver; every method below that launches or prepares does."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name, result, arguments in (
            ("kunlun_gdpa_prepare", c_int, [c_void_p]),
            ("kunlun_gdpa_unit_rows", c_int, [c_void_p, ctypes.POINTER(c_int32)]),
            ("kunlun_gdpa_forward", c_int, [c_void_p, c_void_p]),
            ("kunlun_prepare_all", c_int, []),
            ("kunlun_force_ptx", None, [c_int]),
            ("kunlun_last_error", c_char_p, []),
            ("kunlun_kernels_abi", c_int, []),
            ("kunlun_kernels_manifest", c_char_p, []),
        ):
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        if (found := self._library.kunlun_kernels_abi()) != ABI:
            raise ValueError(f"{path}: expected ABI {ABI}, found {found}; build it with `python -m kernels.aot build`")

    def manifest(self) -> dict[str, Any]:
        """Version, variants and compute capabilities that the library holds."""
        found: dict[str, Any] = json.loads(self._library.kunlun_kernels_manifest())
        return found

    def prepare_gdpa(self, params: GDPAParams) -> None:
        """Loads what `gdpa_forward(params)` launches into the current context. Raises `KernelError`."""
        self._check(self._library.kunlun_gdpa_prepare(ctypes.byref(params)))

    def gdpa_unit_rows(self, params: GDPAParams) -> int:
        """Query rows per entry of a work list for the prepared kernel. Raises `KernelError`."""
        rows = c_int32()
        self._check(self._library.kunlun_gdpa_unit_rows(ctypes.byref(params), ctypes.byref(rows)))
        return rows.value

    def gdpa_forward(self, params: GDPAParams, stream: int) -> None:
        """Enqueues GDPA or the PFFN block on a `cudaStream_t` given as an integer (0: default). Raises `KernelError`."""
        self._check(self._library.kunlun_gdpa_forward(ctypes.byref(params), stream))

    def prepare_all(self) -> None:
        """Loads every variant into the current context. Raises `KernelError`."""
        self._check(self._library.kunlun_prepare_all())

    def force_ptx(self, on: bool) -> None:
        """Contexts prepared from now on use the PTX that newer GPUs get."""
        self._library.kunlun_force_ptx(int(on))

    def _check(self, status: int) -> None:
        if status:
            raise KernelError(Status(status), self._library.kunlun_last_error().decode())
