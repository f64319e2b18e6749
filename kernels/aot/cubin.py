"""Reads a cubin without NVIDIA's tools: registers, stack, shared memory and the layout of the kernel's parameters.

A cubin is a 64-bit ELF file. `.nv.info` and `.nv.info.<kernel>` hold attributes as (format, code, payload) records; the
layout is what `cuobjdump -elf` prints and was checked against it for every supported SM (`tests/kernels/aot/test_cubin.py`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_SIZED_VALUE = 4  # format whose third field is the number of payload bytes that follow
_FRAME_SIZE, _KPARAM_INFO, _CBANK_PARAM_SIZE, _REGCOUNT, _KPARAM_INFO_V2 = 0x11, 0x17, 0x19, 0x2F, 0x45


@dataclass(frozen=True)
class KernelParameter:
    """Place of one kernel parameter in the constant bank, in bytes from the start of the parameters."""

    ordinal: int
    offset: int
    size: int


@dataclass(frozen=True)
class Cubin:
    """What one kernel's cubin says about itself. `stack_bytes` is the frame of a thread: where registers are spilled to."""

    kernel: str
    registers: int
    stack_bytes: int
    static_shared_bytes: int
    parameters: tuple[KernelParameter, ...]
    parameter_bytes: int


def read_cubin(data: bytes) -> Cubin:
    """Parses a cubin that holds exactly one kernel; raises `ValueError` on anything else."""
    sections = _sections(data)
    kernels = [name.removeprefix(".text.") for name in sections if name.startswith(".text.")]
    if len(kernels) != 1:
        raise ValueError(f"cubin: expected one kernel, found {len(kernels)}: {kernels}")
    kernel = kernels[0]
    registers = stack = 0
    for code, payload in _attributes(sections[".nv.info"][1]):
        if code == _REGCOUNT:
            registers = max(registers, struct.unpack("<II", payload)[1])
        elif code == _FRAME_SIZE:
            stack = max(stack, struct.unpack("<II", payload)[1])
    parameters, total = [], 0
    for code, payload in _attributes(sections[f".nv.info.{kernel}"][1]):
        if code in (_KPARAM_INFO, _KPARAM_INFO_V2):
            _, ordinal, offset, flags = struct.unpack("<IHHI", payload)
            parameters.append(KernelParameter(ordinal, offset, flags >> 18))
        elif code == _CBANK_PARAM_SIZE:
            total = struct.unpack("<H", payload[:2])[0]
    shared = sections.get(f".nv.shared.{kernel}", (0, b""))[0]
    ordered = tuple(sorted(parameters, key=lambda p: p.ordinal))
    return Cubin(kernel, registers, stack, shared, ordered, total)


def _sections(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Name → (size, bytes); sections without bytes in the file (NOBITS) keep their size."""
    if data[:4] != b"\x7fELF" or data[4] != 2:
        raise ValueError("cubin: not a 64-bit ELF file")
    table, entry, count, names_at = (
        struct.unpack_from("<Q", data, 40)[0],
        *struct.unpack_from("<HHH", data, 58),
    )
    headers = [struct.unpack_from("<IIQQQQ", data, table + i * entry) for i in range(count)]
    strings = data[headers[names_at][4] :]
    found = {}
    for name_at, kind, _, _, offset, size in headers:
        name = strings[name_at : strings.index(b"\0", name_at)].decode()
        found[name] = (size, b"" if kind == 8 else data[offset : offset + size])
    return found


def _attributes(section: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 4 <= len(section):
        form, code, size = struct.unpack_from("<BBH", section, at)
        at += 4
        if form == _SIZED_VALUE:
            found.append((code, section[at : at + size]))
            at += size
        else:  # the two size bytes are the value
            found.append((code, struct.pack("<H", size)))
    return found
