"""The engine interface: two graphs, dense arrays in, dense arrays out.

An engine knows no requests, no ids and no queue. Tensor names, dtypes and shapes are those of
`model.signature`. `run` blocks; the scheduler calls it from its slot threads, and every slot owns
one session, so sessions need not be thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


class DeviceError(RuntimeError):
    """The device that an engine runs on has failed. `is_lost`: nothing works on it any more in this process."""

    def __init__(self, message: str, *, is_lost: bool = False) -> None:
        super().__init__(message)
        self.is_lost = is_lost


class Session(Protocol):
    """One execution context of both graphs.

    `fault`: why another engine had to answer the last `run`; empty when this one did (`serving.engines.backed`).
    """

    fault: str

    def prepare(self, graph: str, inputs: Tensors) -> None:
        """What the first run of `graph` with these shapes needs and no batch should wait for (compiling, say).

        Unlike `run`, it may be called from another thread while the session runs. Raises `DeviceError` where it cannot be done
        now; the shape stays cold, and is tried again later.
        """
        ...

    def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Run `graph` (`encode_user` or `score_candidates`); outputs are the caller's to keep."""
        ...


class Engine(Protocol):
    """A compiled model. `device_peak_flops` is per session, from a matrix-product probe in this engine.

    `entry`: its directory in the engine cache, whose name ends in the key of its identity.
    """

    name: str
    entry: Path
    precision: str
    device_peak_flops: float

    def open_session(self) -> Session:
        """A new execution context."""
        ...

    def close(self) -> None:
        """Free device memory."""
        ...
