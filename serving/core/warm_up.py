"""Warm-up: no request is the first to use a tensor shape.

The first use of a shape costs an engine one extra inference or, where it compiles a graph per shape, half
a second, and every slot has a session of its own. Before a server is ready each slot runs a few
*essential* shapes, one of which holds any batch. The others follow, cheapest first: a thread beside the
slot's prepares them (compiling takes long), and the slot runs each once when it has been idle for a
moment; until then a batch is padded to the cheapest shape that is warm. So a restart is ready soon, and
what a cold shape costs falls on nobody. A shape that a device fails to prepare stays cold and is tried
again; what a backup engine ran for another says nothing of that one's shapes and times.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from model.flops import FlopModel
from model.signature import ENCODE_USER, SCORE_CANDIDATES
from serving.core.host_features import HostFeatures
from serving.core.shapes import EncodeShape, ScoreShape, Shape, ShapeBuckets
from serving.engines.base import DeviceError, Session

TRIES, RETRY_AFTER_S = 10, 60.0
_LOG = logging.getLogger(__name__)


def executed_flops(flops: FlopModel, shapes: ShapeBuckets, shape: Shape) -> float:
    """What the engine computes in this shape, padding included."""
    if isinstance(shape, EncodeShape):
        return shape.users * flops.encode(shapes.levels[shape.level], executed=True).total
    return flops.score(shape.requests, shape.candidates, executed=True).total


class WarmUp:
    """The shapes of one slot. Its thread warms them; the event loop asks which one a batch should take."""

    def __init__(self, shapes: ShapeBuckets, host: HostFeatures, flops: FlopModel) -> None:
        self._shapes, self._host = shapes, host
        every: list[Shape] = [*shapes.encode_shapes, *shapes.score_shapes]
        self._flops = {shape: executed_flops(flops, shapes, shape) for shape in every}
        self._cold = dict.fromkeys(sorted(self._flops, key=self._flops.__getitem__))
        self._warm: set[Shape] = set()
        self._prepared: set[Shape] = set()
        self._closed = threading.Event()
        self._is_all_prepared = False

    @property
    def cold(self) -> int:
        """How many shapes have not been run yet."""
        return len(self._cold)

    def executed_flops(self, shape: Shape) -> float:
        """What the engine computes in this shape, padding included."""
        return self._flops[shape]

    def encode_shape(self, level: int, users: int) -> EncodeShape:
        """The cheapest warm shape that holds `users` users of a history level; the exact bucket before any is warm."""
        exact = self._shapes.encode_shape(level, users)
        if exact in self._warm:
            return exact
        fitting = [s for s in list(self._warm) if isinstance(s, EncodeShape) and s.level == level and s.users >= users]
        return min(fitting, key=self._flops.__getitem__, default=exact)

    def score_shape(self, requests: int, candidates: int) -> ScoreShape:
        """The cheapest warm shape that holds a batch; the exact bucket before any is warm."""
        exact = self._shapes.score_shape(requests, candidates)
        if exact in self._warm:
            return exact
        fitting = [
            s for s in list(self._warm) if isinstance(s, ScoreShape) and s.requests >= requests and s.candidates >= candidates
        ]
        return min(fitting, key=self._flops.__getitem__, default=exact)

    def run_essential(self, session: Session, observe: Callable[[str, float, float], None]) -> None:
        """Run what must be warm before the first request; `observe(graph, FLOPs, seconds)` hears of second uses.

        Returns early once closed: nobody waits for it any more.
        """
        for shape in self._shapes.essential:
            if self._closed.is_set():
                return
            self._run(session, shape)
            graph, seconds = self._run(session, shape)
            if not session.fault:
                observe(graph, self._flops[shape], seconds)
                self._count_as_warm(shape)

    def prepare_rest(self, session: Session) -> None:
        """Prepare every shape, one after the other; returns early once closed. For a thread of its own.

        Essential ones are, but for what may stand behind the session's engine.
        """
        waiting: Sequence[Shape] = list(dict.fromkeys((*self._shapes.essential, *self._cold)))
        try:
            for _ in range(TRIES):
                waiting = self._prepare(session, waiting)
                if not waiting or self._closed.wait(RETRY_AFTER_S):
                    return
            _LOG.error("%d shapes stay cold: they could not be prepared %d times", len(waiting), TRIES)
        finally:
            self._is_all_prepared = True

    def run_next(self, session: Session) -> bool:
        """Run the cheapest cold shape that is prepared, if there is one; False when none is cold, or will be prepared."""
        is_all_prepared = self._is_all_prepared  # first: so that none is missed
        shape = next((shape for shape in self._cold if shape in self._prepared), None)
        if shape is None:
            return bool(self._cold) and not is_all_prepared
        self._run(session, shape)
        self._count_as_warm(shape)
        return bool(self._cold)

    def inputs(self, shape: Shape) -> tuple[str, Mapping[str, NDArray[Any]]]:
        """The graph of a shape and inputs of it: zeros, with full histories."""
        if isinstance(shape, EncodeShape):
            size = self._shapes.encode_sizes(shape.level, shape.users)
            return ENCODE_USER, self._host.zeros(self._host.encode_signature, size)
        return SCORE_CANDIDATES, self._host.zeros(self._host.score_signature, {"R": shape.requests, "C": shape.candidates})

    def close(self) -> None:
        """Run and prepare no more than is begun."""
        self._closed.set()

    def _prepare(self, session: Session, shapes: Sequence[Shape]) -> list[Shape]:
        """Those of `shapes` that could not be prepared; none once closed."""
        failed: list[Shape] = []
        reason: DeviceError | None = None
        for shape in shapes:
            if self._closed.is_set():
                return []
            try:
                session.prepare(*self.inputs(shape))
            except Exception as error:
                if self._closed.is_set():  # the engine may be, too
                    return []
                if not isinstance(error, DeviceError) or error.is_lost:
                    raise
                failed.append(shape)
                reason = error
            else:
                self._prepared.add(shape)
        if failed:
            _LOG.warning("%d of %d shapes could not be prepared and stay cold: %s", len(failed), len(shapes), reason)
        return failed

    def _run(self, session: Session, shape: Shape) -> tuple[str, float]:
        """The graph, and how many seconds it ran."""
        graph, inputs = self.inputs(shape)
        started = time.perf_counter()
        session.run(graph, inputs)
        return graph, time.perf_counter() - started

    def _count_as_warm(self, shape: Shape) -> None:
        self._cold.pop(shape, None)
        self._warm.add(shape)
