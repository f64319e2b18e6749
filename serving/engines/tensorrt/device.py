"""What the engine needs of a GPU and of TensorRT, as interfaces: the real ones are `nvidia.py`'s, tests have a stand-in.

Addresses, streams and graphs are integers, as CUDA hands them out. Calls that take a stream return before the device has
done anything: host memory that they name must stay as it is, and may be read, only after `synchronize`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.engines.base import DeviceError
from serving.engines.tensorrt.work import GraphWork

_LOG = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes; what TensorRT asks of the address of a tensor."""


@dataclass(frozen=True)
class HostBlock:
    """Page-locked host memory: its address, and its bytes as an array uint8 [size]."""

    address: int
    array: NDArray[np.uint8]


class Device(Protocol):
    """One GPU. Every call may be made from any thread; raises `DeviceError`.

    `total_bytes`: of its memory. `sm`: compute capability, as `sm_90`.
    """

    index: int
    name: str
    sm: str
    driver: str
    total_bytes: int

    def free_bytes(self) -> int:
        """What of its memory nobody holds now, in this process or another."""
        ...

    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def pin(self, size: int) -> HostBlock: ...
    def unpin(self, block: HostBlock) -> None: ...
    def open_stream(self) -> int: ...
    def close_stream(self, stream: int) -> None: ...
    def upload(self, to: int, block: HostBlock, size: int, stream: int) -> None:
        """Copy the first `size` bytes of a host block to device memory."""
        ...

    def download(self, block: HostBlock, source: int, size: int, stream: int) -> None:
        """Copy `size` bytes of device memory to the start of a host block."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """A graph of what `work` puts on the stream; nothing of it runs."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...
    def close_graph(self, graph: int) -> None: ...
    def synchronize(self, stream: int) -> None:
        """Wait until everything on the stream has been done."""
        ...


class Execution(Protocol):
    """A context of a program with the shapes of one bucket."""

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        """Where its inputs and outputs lie, and its scratch memory of at least `Program.scratch_bytes`."""
        ...

    def enqueue(self, stream: int) -> None:
        """Run once; the first time not inside `capture`."""
        ...

    def close(self) -> None: ...


class Program(Protocol):
    """One built graph on one device. `weight_bytes`: size of its plan, nearly all of it weights."""

    weight_bytes: int

    def scratch_bytes(self, profile: int) -> int: ...
    def open(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> Execution: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built: the typed graph in a file, its work, and where timings of kernels are kept between builds.

    `shapes(sizes)`: input shapes of some sizes, by tensor.
    """

    graph: Path
    work: GraphWork
    shapes: Callable[[Mapping[str, int]], dict[str, tuple[int, ...]]]
    timing_cache: Path


class Runtime(Protocol):
    """The GPUs of this machine and the TensorRT that builds for them. `libraries`: version or digest by name."""

    libraries: dict[str, str]
    devices: tuple[Device, ...]

    def build(self, request: BuildRequest) -> bytes:
        """A serialized engine for the first device. Raises `ArtifactError` with the parser's or builder's words."""
        ...

    def refit(self, plan: bytes, graph: Path) -> bytes:
        """The serialized engine of the same graph with other weights."""
        ...

    def load(self, device: Device, plan: Path) -> Program: ...


def give_back(whose: str, releases: Iterable[Callable[[], None]]) -> None:
    """Call every one of `releases`. A device that is lost fails them all, which nobody can mend: it is logged once."""
    failures = []
    for release in releases:
        try:
            release()
        except DeviceError as error:
            failures.append(error)
    if failures:
        _LOG.warning("%s: %d resource(s) could not be given back: %s", whose, len(failures), failures[0])
