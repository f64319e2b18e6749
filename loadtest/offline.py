"""What the engine does without a server: the same work back to back, in process, in well-formed batches.

The denominator of S1: same engine, same slot and threads, the same users encoded and candidates scored
as a server was seen to do, stacked in advance, nothing waiting for anything.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import numpy as np

from loadtest.bench import Bench
from model.artifact import open_artifact
from model.flops import FlopModel
from model.signature import ENCODE_USER, SCORE_CANDIDATES
from serving.config import ServerConfig, artifact_path
from serving.core.host_features import HostFeatures
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets, round_up
from serving.engines.cache import default_cache
from serving.engines.open import open_engine


@dataclass(frozen=True)
class OfflineWork:
    """Candidate counts of the requests, and how many users are encoded per request at which history level."""

    candidates: tuple[int, ...]
    encodes_per_request: float
    level_shares: tuple[float, ...]


@dataclass(frozen=True)
class OfflineResult:
    """Requests per second of one slot, its useful FLOP/s, and the engine's matrix-product peak."""

    requests_per_s: float
    useful_flops_per_s: float
    device_peak_flops: float


def run_offline(bench: Bench, work: OfflineWork, *, precision: str, cpu: int | None, seconds: float = 8.0) -> OfflineResult:
    """Run `work` over and over for about `seconds` on one slot of one thread, pinned to `cpu`."""
    artifact = open_artifact(artifact_path(ServerConfig(repository=bench.pipeline.workdir / "models")))
    engine = open_engine(artifact, cache=default_cache(artifact), precision=precision, threads_per_slot=1, slots=1)
    host, options = HostFeatures(artifact), CoreOptions()
    shapes, flops = ShapeBuckets(artifact.schema, options), FlopModel.from_json(artifact.manifest.flops, artifact.config)
    users, most = options.max_batch_users, options.max_batch_candidates
    batches: list[tuple[str, dict[str, int], float]] = []
    for level, share in enumerate(work.level_shares):
        encodes = share * work.encodes_per_request * len(work.candidates)
        size = shapes.encode_sizes(level, users)
        useful = users * flops.encode(shapes.levels[level]).total
        batches += [(ENCODE_USER, size, useful)] * round(encodes / users)
    requests = rows = 0
    for count in (*work.candidates, most + 1):  # first come, first stacked; the last one only closes the batch
        if requests and (rows + count > most or requests == options.max_batch_requests):
            size = {"R": round_up(shapes.requests, requests), "C": round_up(shapes.candidates, rows)}
            batches.append((SCORE_CANDIDATES, size, flops.score(requests, rows).total))
            requests = rows = 0
        requests, rows = requests + 1, rows + count
    result: list[float] = []

    def main() -> None:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        session = engine.open_session()
        inputs = {}
        for graph, size, _ in batches:
            key = (graph, *size.items())
            if key not in inputs:
                signature = host.encode_signature if graph == ENCODE_USER else host.score_signature
                inputs[key] = host.zeros(signature, size)
                session.run(graph, inputs[key])
        order = np.random.default_rng(0).permutation(len(batches))
        began, rounds = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for at in order.tolist():
                graph, size, _ = batches[at]
                session.run(graph, inputs[graph, *size.items()])
            rounds += 1
        result.append((time.perf_counter() - began) / rounds)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    engine.close()
    total = sum(useful for _, _, useful in batches)
    return OfflineResult(len(work.candidates) / result[0], total / result[0], engine.device_peak_flops)
