"""Batches of any size on an engine of fixed work: cut where they are too large, for parity checks and measurements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.signature import ENCODE_USER, REQUEST_INDEX
from model.tensor_spec import CANDIDATES, REQUESTS, USERS
from serving.engines.base import Session, Tensors
from serving.engines.tensorrt.session import ModelForm


class PiecewiseSession:
    """A session that takes more users, requests and candidates than the engine's largest bucket; the engine's errors stay."""

    fault = ""

    def __init__(self, session: Session, form: ModelForm) -> None:
        self._session = session
        self._rows = {spec.name: str(spec.shape[0]) for s in form.padded.values() for spec in s.inputs}
        buckets = [bucket for work in form.work.values() for bucket in work.buckets]
        self._most = {name: max(b[name] for b in buckets if name in b) for name in (USERS, REQUESTS, CANDIDATES)}

    def prepare(self, graph: str, inputs: Tensors) -> None:
        """What the pieces need."""
        for piece in self._pieces(graph, inputs):
            self._session.prepare(graph, piece)

    def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """As the session's, with the pieces' outputs one after the other."""
        outputs = [self._session.run(graph, piece) for piece in self._pieces(graph, inputs)]
        return {name: np.concatenate([piece[name] for piece in outputs]) for name in outputs[0]}

    def _pieces(self, graph: str, inputs: Tensors) -> Iterator[Tensors]:
        if graph == ENCODE_USER:
            users = next(len(array) for name, array in inputs.items() if self._rows[name] == USERS)
            for start in range(0, users, self._most[USERS]):
                yield {name: array[start : start + self._most[USERS]] for name, array in inputs.items()}
            return
        index = inputs[REQUEST_INDEX]
        start = 0
        while start < len(index):
            stop = self._stop(index, start)
            asked, own = np.unique(index[start:stop], return_inverse=True)
            piece = {n: a[asked] if self._rows[n] == REQUESTS else a[start:stop] for n, a in inputs.items()}
            assert self._rows[REQUEST_INDEX] == CANDIDATES
            yield piece | {REQUEST_INDEX: own.astype(index.dtype)}
            start = stop

    def _stop(self, index: NDArray[np.int64], start: int) -> int:
        """The end of the piece from `start` on: as many candidates as fit, of as many requests."""
        seen: set[int] = set()
        for at in range(start, min(len(index), start + self._most[CANDIDATES])):
            seen.add(int(index[at]))
            if len(seen) > self._most[REQUESTS]:
                return at
        return min(len(index), start + self._most[CANDIDATES])
