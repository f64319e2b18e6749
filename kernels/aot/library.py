"""The launcher library from Python: its parameter structs as ctypes, its status codes as one exception. No torch here.

Field names, order and types are those of `kunlun_kernels.h`; the library refuses a struct whose size differs, and
`tests/kernels/aot/test_launcher.py` compares every offset with the C compiler's.
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


class _Params(ctypes.Structure):
    """A parameter struct: device addresses as integers, counts and scales. `version` is set by the constructor."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(version=(1 << 24) | ctypes.sizeof(type(self)), **fields)


def _fields(*names: str, kind: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names)


class GDPAParams(_Params):
    """`kunlun_gdpa_params`."""

    _fields_ = (
        ("version", c_uint32),
        *_fields("dtype", "activation", "block", kind=c_int32),
        *_fields("q", "k", "v", "out", "q_offsets", "q_lengths", "k_offsets", "kv_index", "units", kind=c_void_p),
        *_fields("unit_count", "max_length", "samples", "heads", "head_width", "n_kv", kind=c_int32),
        *_fields("scale_in", "scale_out", "eps", kind=c_float),
        ("reserved", c_uint32),
    )


class WindowParams(_Params):
    """`kunlun_window_params`."""

    _fields_ = (
        ("version", c_uint32),
        ("dtype", c_int32),
        *_fields("q", "k", "v", "out", "lse", "offsets", "units", kind=c_void_p),
        *_fields("unit_count", "max_length", "samples", "heads", "head_width", "window", kind=c_int32),
        *_fields("q_row", "q_head", "k_row", "k_head", "v_row", "v_head", kind=c_int32),
        ("scale", c_float),
        ("reserved", c_uint32),
    )


class SeedPoolingParams(_Params):
    """`kunlun_seed_pooling_params`."""

    _fields_ = (
        ("version", c_uint32),
        ("dtype", c_int32),
        *_fields("seeds", "k", "v", "out", "lse", "offsets", "order", kind=c_void_p),
        *_fields("samples", "n_seeds", "heads", "head_width", "k_row", "k_head", "v_row", "v_head", kind=c_int32),
        ("scale", c_float),
        ("reserved", c_uint32),
    )


_ENTRIES = {GDPAParams: "gdpa", WindowParams: "window", SeedPoolingParams: "seed_pooling"}
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
            ("kunlun_window_prepare", c_int, [c_void_p]),
            ("kunlun_window_unit_rows", c_int, [c_void_p, ctypes.POINTER(c_int32)]),
            ("kunlun_window_forward", c_int, [c_void_p, c_void_p]),
            ("kunlun_seed_pooling_prepare", c_int, [c_void_p]),
            ("kunlun_seed_pooling_forward", c_int, [c_void_p, c_void_p]),
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

    def prepare(self, params: _Params) -> None:
        """Loads what `launch(params, …)` launches into the current context. Raises `KernelError`."""
        self._check(getattr(self._library, f"kunlun_{_ENTRIES[type(params)]}_prepare")(ctypes.byref(params)))

    def unit_rows(self, params: GDPAParams | WindowParams) -> int:
        """Query rows per entry of a work list for the prepared kernel. Raises `KernelError`."""
        rows = c_int32()
        entry = getattr(self._library, f"kunlun_{_ENTRIES[type(params)]}_unit_rows")
        self._check(entry(ctypes.byref(params), ctypes.byref(rows)))
        return rows.value

    def launch(self, params: _Params, stream: int) -> None:
        """Enqueues the struct's kernel on a `cudaStream_t` given as an integer (0: default). Raises `KernelError`."""
        self._check(getattr(self._library, f"kunlun_{_ENTRIES[type(params)]}_forward")(ctypes.byref(params), stream))

    def prepare_all(self) -> None:
        """Loads every variant into the current context. Raises `KernelError`."""
        self._check(self._library.kunlun_prepare_all())

    def force_ptx(self, on: bool) -> None:
        """Contexts prepared from now on use the PTX that newer GPUs get."""
        self._library.kunlun_force_ptx(int(on))

    def _check(self, status: int) -> None:
        if status:
            raise KernelError(Status(status), self._library.kunlun_last_error().decode())
