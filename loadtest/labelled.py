"""Logged requests with labels among heavy-tailed crowds of candidates: what a degraded answer costs in NE.

The shown items of a held-out request are hidden among random others, as in production, where a ranker
sees many candidates and few are shown; NE is taken over the shown ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kunlun.v1 import ranker_pb2, types_pb2
from loadtest.bench import Bench
from loadtest.openloop.messages import write_messages
from loadtest.openloop.run import Run, send
from loadtest.openloop.workload import Workload, draw
from loadtest.processes import RunningServer
from loadtest.replay import Replay
from model.metrics.normalized_entropy import NEState

MEAN_CANDIDATES = 100.0


@dataclass(frozen=True)
class LabelledRequests:
    """`numbers`: requests of the log. `shown`: positions of the shown items in each request's candidates."""

    replay: Replay
    numbers: NDArray[np.int64]
    shown: list[NDArray[np.int64]]
    messages: list[bytes]

    @classmethod
    def from_log(cls, bench: Bench, count: int, seed: int) -> LabelledRequests:
        """The last `count` requests of the test split."""
        replay = bench.replay
        log, numbers = replay.log, bench.pipeline.held_out(replay.log)[-count:]
        rng = np.random.default_rng(seed)
        sizes = draw(Workload(rate=100, seconds=100, seed=seed, candidates_mean=MEAN_CANDIDATES)).candidates
        shown, messages = [], []
        for number in numbers.tolist():
            own = log.item_index[log.shown(number)]
            others = np.setdiff1d(np.arange(len(log.item_ids)), own)
            extra = rng.choice(others, min(len(others), max(0, int(rng.choice(sizes)) - len(own))), replace=False)
            candidates = rng.permutation(np.concatenate([own, extra]))
            where = {int(item): at for at, item in enumerate(candidates)}
            shown.append(np.array([where[int(item)] for item in own]))
            messages.append(
                ranker_pb2.RankRequest(
                    request_id=f"labelled-{number}",
                    user_id=log.user_ids[log.user_index[number]],
                    candidates=types_pb2.ItemIds(keys=[log.item_ids[i] for i in candidates]),
                    context_features=[
                        types_pb2.FeatureColumn(name=name, string_values=types_pb2.StringValues(values=[str(value)]))
                        for name, value in replay.context(number).items()
                    ],
                    time_ms=int(log.time_ms[number]),
                ).SerializeToString()
            )
        return cls(replay, numbers, shown, messages)

    def send(self, server: RunningServer, rate: float, cpu: int | None, deadline_ms: float) -> Run:
        """All requests once, in log order, at Poisson times."""
        workload = Workload(rate=rate, seconds=len(self.messages) / rate, deadline_ms=deadline_ms)
        with tempfile.TemporaryDirectory(prefix="kunlun-labelled-") as directory:
            file = Path(directory, "messages.bin")
            write_messages(file, self.messages)
            return send(server, workload, cpu, keep_replies=True, messages=file)

    def normalized_entropy(
        self, replies: Sequence[ranker_pb2.RankResponse | None], also: Sequence[ranker_pb2.RankResponse | None] | None = None
    ) -> float:
        """NE of the first task over the shown items of every request that was answered, here and in `also`."""
        log, state = self.replay.log, NEState()
        for number, shown, reply, other in zip(self.numbers.tolist(), self.shown, replies, also or replies, strict=True):
            if reply is None or other is None:
                continue
            scores = np.empty(len(reply.order), np.float32)
            scores[np.asarray(reply.order)] = np.asarray(reply.scores[0].scores, np.float32)
            state = state + NEState.of(scores[shown], log.labels[log.shown(number)][:, 0])
        return state.normalized_entropy
