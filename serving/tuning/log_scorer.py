"""Scores requests of a log with an engine, one at a time, from offline histories: what a server would answer, without one.

Called where figures of a served model are wanted on held-out requests. Not thread-safe: it owns one engine session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact
from model.data.request_log import RequestLog
from model.history import newest_event_ms
from model.records import Records
from model.signature import ENCODE_USER, PROBABILITIES, SCORE_CANDIDATES
from serving.core.host_features import HostFeatures, stack_requests, stack_users
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets
from serving.engines.base import Engine

Histories = Mapping[str, Records]


class LogScorer:
    """One artifact on one engine, and a log of its schema."""

    def __init__(self, artifact: Artifact, engine: Engine, log: RequestLog) -> None:
        self.log, self.host, self.session = log, HostFeatures(artifact), engine.open_session()
        self.shapes = ShapeBuckets(artifact.schema, CoreOptions())

    def level(self, histories: Histories) -> int:
        """The padding level of these histories."""
        return self.shapes.level({event: len(history) for event, history in histories.items()})

    def score(self, request: int, histories: Histories) -> NDArray[np.float32]:
        """Probabilities [C, tasks] of the request's shown items, as if its user had these histories."""
        log, host = self.log, self.host
        newest = newest_event_ms(list(histories.values()))
        user = int(log.user_index[request])
        steps = self.shapes.levels[self.level(histories)]
        inputs = host.user_inputs(log.users[user : user + 1], int(log.user_keys[user]), histories, newest, steps)
        state = self.session.run(ENCODE_USER, stack_users([inputs], 1))
        items = log.item_index[log.shown(request)]
        rows = host.encode_items(log.item_keys[items], log.items[items])
        context, record = log.contexts[request : request + 1], host.affinity_record(histories)
        scored = host.score_inputs(rows, context, int(log.time_ms[request]), newest, record)
        shape = self.shapes.score_shape(1, len(items))
        stacked = stack_requests([state], [scored.context], [scored.items], 1, shape.candidates)
        return self.session.run(SCORE_CANDIDATES, stacked)[PROBABILITIES][: len(items)]

    def predict(self, requests: NDArray[np.int64], advance: Callable[[], None] = lambda: None) -> NDArray[np.float32]:
        """Probabilities [C', tasks] of all shown items of `requests`, in that order, from the histories that they saw."""
        parts = []
        for request in requests.tolist():
            parts.append(self.score(request, self.log.histories(request)))
            advance()
        return np.concatenate(parts)
