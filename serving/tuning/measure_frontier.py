"""Measures the degradation ladder's frontier: what each cheaper answer loses in NE and saves in engine time.

Run by `kunlun frontier` on held-out requests of a canonical log, with the compiled engine that will
serve. Every request is answered in full and on every step; losses are paired by request, so their
standard errors are small. A stale state is one that lacks the newest k events; fewer candidates
keeps the best by the popularity prior, as the ranker does. Torch-free.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact
from model.data.request_log import RequestLog
from model.flops import FlopModel
from model.metrics.normalized_entropy import NEState
from model.records import TIME_MS
from model.signature import ENCODE_USER, SCORE_CANDIDATES
from serving.core.frontier import Frontier, Step, engine_key
from serving.core.host_features import Rows
from serving.core.ordering import Ordering, PopularityPrior
from serving.engines.base import Engine
from serving.tuning.log_scorer import Histories, LogScorer

STALE = (1, 4, 16)
FEWER = (0.5, 0.25, 0.125)
REPEATS = 9


@dataclass
class _Losses:
    """Log loss per request of one way to answer, and the NE state of all of them."""

    per_request: list[float]
    state: NEState

    def add(self, probabilities: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        known = ~np.isnan(labels)
        of_request = NEState.of(probabilities[known], labels[known], np.broadcast_to(weights[:, None], labels.shape)[known])
        self.per_request.append(of_request.log_loss * of_request.examples if of_request.examples else 0.0)
        self.state = self.state + of_request


class FrontierMeasurement:
    """One artifact on one engine. `candidates`: size of the request that times are stated for."""

    def __init__(self, artifact: Artifact, engine: Engine, log: RequestLog, candidates: int) -> None:
        self._artifact, self._engine, self._log, self._candidates = artifact, engine, log, candidates
        self._weights = log.weights()
        self._scorer = LogScorer(artifact, engine, log)
        self._host, self._session, self._shapes = self._scorer.host, self._scorer.session, self._scorer.shapes
        self._flops = FlopModel.from_json(artifact.manifest.flops, artifact.config)
        self._prior, self._ordering = PopularityPrior(artifact), Ordering(artifact.schema)

    def run(self, requests: NDArray[np.int64], advance: Callable[[], None]) -> Frontier:
        """Answer every request on every step; `advance` is called after each request."""
        shares = [share for share in self._shapes.shares if share < 1]
        losses: dict[tuple[str, float], _Losses] = {}
        levels = []
        for request in requests.tolist():
            histories = self._log.histories(request)
            levels.append(self._scorer.level(histories))
            full = self._scorer.score(request, histories)
            prior = self._prior.probabilities(self._keys(request))
            answers = {("FULL", 0.0): full, ("PRIOR", 0.0): prior}
            answers |= {("STALE_STATE", float(k)): self._scorer.score(request, _without_newest(histories, k)) for k in STALE}
            answers |= {("SHORT_HISTORY", s): self._scorer.score(request, self._shapes.shortened(histories, s)) for s in shares}
            answers |= {("FEWER_CANDIDATES", s): self._fewer(request, full, prior, s) for s in FEWER}
            labels, weights = self._log.labels[self._log.shown(request)], self._weights[self._log.shown(request)]
            for step, probabilities in answers.items():
                losses.setdefault(step, _Losses([], NEState())).add(probabilities, labels, weights)
            advance()
        return self._frontier(losses, levels)

    def _frontier(self, losses: dict[tuple[str, float], _Losses], levels: list[int]) -> Frontier:
        full = losses.pop(("FULL", 0.0))
        encode_ms = [self._encode_ms(level) for level in range(len(self._shapes.levels))]
        encode_flops = [self._flops.encode(level, executed=True).total for level in self._shapes.levels]
        score_ms, score_flops = self._score_ms(self._candidates), self._flops.score(1, self._candidates).total
        mean_ms = float(np.mean([encode_ms[level] for level in levels]))
        mean_flops = float(np.mean([encode_flops[level] for level in levels]))
        base = np.array(full.per_request)
        steps = []
        for (rung, setting), answered in losses.items():
            match rung:
                case "STALE_STATE":
                    saved = mean_ms, mean_flops
                case "SHORT_HISTORY":
                    shorter = [min(level, self._shapes.shares.index(setting)) for level in levels]
                    saved = (
                        mean_ms - float(np.mean([encode_ms[level] for level in shorter])),
                        mean_flops - float(np.mean([encode_flops[level] for level in shorter])),
                    )
                case "FEWER_CANDIDATES":
                    kept = max(1, round(setting * self._candidates))
                    saved = score_ms - self._score_ms(kept), score_flops - self._flops.score(1, kept).total
                case _:
                    saved = mean_ms + score_ms, mean_flops + score_flops
            difference = np.array(answered.per_request) - base
            steps.append(
                Step(
                    rung=rung,  # type: ignore[arg-type]
                    setting=setting,
                    ne_loss=float(difference.sum() / base.sum()),
                    ne_loss_error=float(np.sqrt(len(base) * difference.var()) / base.sum()),
                    ms_saved=saved[0],
                    flops_saved=saved[1],
                )
            )
        return Frontier(
            artifact_digest=self._artifact.digest,
            engine_key=engine_key(self._engine.entry),
            requests=len(base),
            ne_full=full.state.normalized_entropy,
            ms_full=mean_ms + score_ms,
            steps=tuple(steps),
        )

    def _keys(self, request: int) -> NDArray[np.int64]:
        return self._log.item_keys[self._log.item_index[self._log.shown(request)]]

    def _fewer(self, request: int, full: NDArray[np.float32], prior: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        """Full scores for the best `share` by the prior, the prior for the rest."""
        shown = self._log.shown(request)
        columns = {name: column[shown].astype(np.float64) for name, column in self._log.columns.items()}
        kept, _ = self._ordering.order(prior, columns, max(1, int(np.ceil(share * len(prior)))))
        mixed = prior.copy()
        mixed[kept] = full[kept]
        return mixed

    def _encode_ms(self, level: int) -> float:
        sizes = self._shapes.encode_sizes(level, 1)
        return self._median_ms(ENCODE_USER, self._host.zeros(self._host.encode_signature, sizes))

    def _score_ms(self, candidates: int) -> float:
        size = {"R": 1, "C": self._shapes.score_shape(1, candidates).candidates}
        return self._median_ms(SCORE_CANDIDATES, self._host.zeros(self._host.score_signature, size))

    def _median_ms(self, graph: str, inputs: Rows) -> float:
        seconds = []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            self._session.run(graph, inputs)
            seconds.append(time.perf_counter() - started)
        return float(np.median(seconds[1:])) * 1e3


def _without_newest(histories: Histories, count: int) -> Histories:
    """Histories before the newest `count` events of all types came."""
    times = np.sort(np.concatenate([history[TIME_MS] for history in histories.values()]))
    if len(times) <= count:
        return {event: history[:0] for event, history in histories.items()}
    newest = times[-count - 1]
    return {event: history[history[TIME_MS] <= newest] for event, history in histories.items()}
