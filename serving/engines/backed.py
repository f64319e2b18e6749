"""An engine on a device that may fail, and one on the CPU that takes over when it does.

Both compute the same model with the same tensors, so user states made by one are scored by the other. A batch that the device
fails is run again on the CPU: slower, but answered; what is answered so is marked, and the reply carries a rung of its own. A
device that is lost is not asked again; one that has failed several batches in a row is left alone for a while. What cannot be
prepared is the warm-up's to try again, and no batch's failure.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from serving.engines.base import DeviceError, Engine, Session, Tensors

FAILURES, PAUSE_S = 3, 30.0
_LOG = logging.getLogger(__name__)


class BackedSession:
    """A session of the device's engine, with one of the CPU's that is opened for the first shape that is prepared or needs it.

    `fault`: why the last `run` was the CPU's; empty when it was not.
    """

    def __init__(self, session: Session, backup: Callable[[], Session], clock: Callable[[], float] = time.monotonic) -> None:
        self.fault = ""
        self._session, self._open_backup, self._clock = session, backup, clock
        self._backup: Session | None = None
        self._failures, self._not_before, self._last = 0, 0.0, ""
        self._noting = threading.Lock()  # the warm-up's helper prepares while the slot runs batches
        self._opening = threading.Lock()

    def prepare(self, graph: str, inputs: Tensors) -> None:
        """On the CPU, and on the device unless it is lost. Raises `DeviceError` also while the device is left alone."""
        self._cpu().prepare(graph, inputs)
        if self._is_lost:
            return
        if self._clock() < self._not_before:
            raise DeviceError(f"the GPU is left alone: {self._last}")
        try:
            self._session.prepare(graph, inputs)
        except DeviceError as error:
            if not error.is_lost:
                raise
            self._note(error)

    def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """On the device if it works, else on the CPU."""
        if self._clock() >= self._not_before:
            try:
                outputs = self._session.run(graph, inputs)
            except DeviceError as error:
                self._note(error)
            else:
                with self._noting:
                    self.fault, self._failures = "", 0
                return outputs
        self.fault = f"the GPU failed ({self._last}); scored on the CPU"
        return self._cpu().run(graph, inputs)

    @property
    def _is_lost(self) -> bool:
        return self._not_before == float("inf")

    def _note(self, error: DeviceError) -> None:
        with self._noting:
            if self._is_lost:
                return
            self._failures += 1
            self._last = str(error)
            if error.is_lost:
                self._not_before = float("inf")
                _LOG.error("the GPU is lost: %s; this slot stays on the CPU until the process is restarted", error)
            elif self._failures >= FAILURES:
                self._not_before = self._clock() + PAUSE_S
                _LOG.error("the GPU failed %d times in a row: %s; on the CPU for %.0f s", self._failures, error, PAUSE_S)
            else:
                _LOG.warning("the GPU failed a batch: %s; run on the CPU", error)

    def _cpu(self) -> Session:
        with self._opening:
            if self._backup is None:
                self._backup = self._open_backup()
            return self._backup


class BackedEngine:
    """`engine` with `backup` behind every session; name, precision and peak are those of `engine`."""

    def __init__(self, engine: Engine, backup: Engine) -> None:
        self._engine, self._backup = engine, backup
        self.name, self.entry, self.precision = engine.name, engine.entry, engine.precision
        self.device_peak_flops = engine.device_peak_flops

    def open_session(self) -> BackedSession:
        """A session of the device, to be taken over by one of the CPU."""
        return BackedSession(self._engine.open_session(), self._backup.open_session)

    def close(self) -> None:
        """Close both."""
        try:
            self._engine.close()
        finally:
            self._backup.close()
