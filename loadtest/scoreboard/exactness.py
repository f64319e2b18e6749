"""Rows of exactness: what must be equal is equal (S8, S12, S13, S14, S18)."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import redis

from kunlun.client import Client
from loadtest.bench import Bench
from loadtest.fleet_feedback import replayed_fleet
from loadtest.replay import Replay
from loadtest.scoreboard.figure import Figure, Row
from model.metrics.normalized_entropy import NEState
from serving.engines.openvino_engine import resolve_precision
from serving.engines.parity import GATES
from serving.feedback.receipt import read_receipt

SEED = 20_261_123


def store_reads_per_rank(bench: Bench) -> Figure:
    """Reads the store's server processed while Ranks ran; what the feedback consumer reads is none of theirs, so it is off."""
    replay = bench.replay.randomized(bench.requests + 1, np.random.default_rng(SEED))
    with bench.server({"feedback": "off"}) as server, Client(server.address, timeout_s=10) as client:
        bench.load(server)
        replay.rank(client, bench.requests)  # opens the connections; their handshakes are no reads of a Rank
        store = redis.Redis.from_url(server.store)
        counts: list[int] = []
        for _ in ("cold", "warm"):  # first with a cold near cache, then again with a warm one
            before, signs = _reads(store)
            for number in range(bench.requests):
                replay.rank(client, number)
            after, signs_after = _reads(store)
            counts.append((after - before) - (signs_after - signs) - 1)
        store.close()
    value = max(counts) / bench.requests
    return Figure(round(value, 4), value <= 1.0, {"ranks": 2 * bench.requests, "cold_and_warm_reads": counts})


def online_ne_equals_offline(bench: Bench) -> Figure:
    """Largest relative difference between the sums that replicas export and a recomputation from what they served.

    Outcomes come in pieces, shuffled and repeated, to any of three replicas; the one that counts them is killed half-way.
    """
    with replayed_fleet(bench, 3, SEED) as fleet:
        worst = fleet.worst_sum()
    conditions = {"impressions": fleet.impressions, "outcomes": fleet.outcomes, "replicas": 3, "consumers_killed": 1}
    return Figure(worst, worst < 1e-6, conditions)


def engine_equals_twin(bench: Bench) -> Figure:
    """Scores of `small` over gRPC against the torch twin on random requests; NE change and rank flips on held-out ones."""
    bench = bench.small
    random_requests = bench.replay.randomized(bench.requests, np.random.default_rng(SEED))
    held_out = bench.pipeline.held_out(bench.replay.log)[-bench.requests :]
    with bench.server() as server, Client(server.address, timeout_s=10) as client:
        bench.load(server)
        served = [random_requests.served(random_requests.rank(client, n)) for n in range(bench.requests)]
    with bench.server() as server, Client(server.address, timeout_s=10) as client:
        bench.load(server, held_out)
        result = bench.replay.run(client, held_out, lambda: None)
    twin = bench.pipeline.twin(random_requests.log, np.arange(bench.requests))
    difference = float(np.abs(np.concatenate(served) - twin).max())
    log = bench.replay.log
    labels = np.concatenate([log.labels[log.shown(n)] for n in held_out.tolist()])[:, 0]
    ours = np.concatenate([result.predictions[n] for n in held_out.tolist()])[:, 0]
    theirs = bench.pipeline.twin(bench.replay.log, held_out)[:, 0]
    change = abs(NEState.of(ours, labels).normalized_entropy / NEState.of(theirs, labels).normalized_entropy - 1)
    bounds = np.concatenate([[0], np.cumsum(np.diff(log.offsets)[held_out])])
    flips = sum(
        bool(np.any(np.argsort(-ours[a:b], kind="stable") != np.argsort(-theirs[a:b].astype(np.float32), kind="stable")))
        for a, b in itertools.pairwise(bounds)
    )
    precision = resolve_precision("auto")
    gate, _ = GATES[precision]
    conditions = {
        "model": "small",
        "random_requests": bench.requests,
        "max_score_difference": difference,
        "score_difference_gate": gate,
        "ne_change": float(change),
        "lists_with_a_rank_flip": flips,
        "lists": len(held_out),
        "precision": precision,
    }
    return Figure(float(change), change <= 2e-4 and difference <= gate and result.errors == 0, conditions)


def flop_counter_equals_count(bench: Bench) -> Figure:
    """The closed formulas against torch's counter over both graphs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model.flops import flop_model
    from model.layers.served_form import served_form
    from model.training.run import TrainingRun

    model = TrainingRun.open(bench.pipeline.path("run")).load_model()
    formula, worst = flop_model(model.schema, model.config), 0.0
    sizes = {"U": 2, "R": 3, "C": 50} | {f"T_{e.name}": e.cap for e in model.schema.events}
    lengths = {e.name: e.cap for e in model.schema.events}
    expected = (
        2 * formula.encode(lengths, executed=True).total + formula.constant("encode_user"),
        formula.score(3, 50, executed=True).total,
    )
    graphs = ((model.encode_user, model.encode_user.signature), (model.score_candidates, model.score_candidates.signature))
    for (module, signature), want in zip(graphs, expected, strict=True):
        inputs = [
            torch.zeros([sizes[s] if isinstance(s, str) else s for s in spec.shape], dtype=getattr(torch, spec.dtype))
            for spec in signature.inputs
        ]
        with torch.no_grad(), served_form(), FlopCounterMode(display=False) as counter:
            module(*inputs)
        worst = max(worst, abs(want / counter.get_total_flops() - 1))
    return Figure(worst, worst < 0.01, {"graphs": 2})


def same_bits_whatever_the_batch(bench: Bench) -> Figure:
    """Random requests to `small` one by one, then after a restart, shuffled, from 8 threads, on a warm and a cold cache."""
    bench = bench.small
    replay = bench.replay.randomized(bench.requests, np.random.default_rng(SEED))
    alone = _scores(bench, replay, np.arange(bench.requests), threads=1)
    order = np.random.default_rng(SEED + 1).permutation(np.repeat(np.arange(bench.requests), 2))
    crowded = _scores(bench, replay, order, threads=8)
    differing = sum(len({*crowded[n], *alone[n]}) > 1 for n in range(bench.requests))
    conditions = {
        "model": "small",
        "precision": resolve_precision("auto"),
        "requests": bench.requests,
        "replays": 2 * bench.requests,
        "threads": 8,
    }
    return Figure(differing, differing == 0, conditions)


def _scores(bench: Bench, replay: Replay, order: np.ndarray, threads: int) -> dict[int, list[bytes]]:
    """Bytes of the scores of every request, once per time it was sent to a fresh server."""
    found: dict[int, list[bytes]] = {}
    with bench.server() as server, Client(server.address, timeout_s=30) as client:
        bench.load(server)
        with ThreadPoolExecutor(threads) as pool:
            for number, reply in zip(order.tolist(), pool.map(lambda n: replay.rank(client, int(n)), order), strict=True):
                assert reply.rung == "FULL", reply.rung_reason
                assert read_receipt(reply.receipt).request_id == reply.request_id
                found.setdefault(number, []).append(replay.served(reply).tobytes())
    return found


def _reads(store: redis.Redis) -> tuple[int, int]:
    """Reads the server processed, and how many of them were signs of life."""
    info = store.info("everything")  # one read, so that two counts differ by one besides what was measured
    return int(info["total_reads_processed"]), int(info.get("cmdstat_ping", {"calls": 0})["calls"])


EXACTNESS = (
    Row("S8", "store requests per Rank, by the server's count of processed reads", "1", store_reads_per_rank),
    Row(
        "S12", "online NE sums − offline recomputation on the served predictions, relative", "< 1e-6", online_ne_equals_offline
    ),
    Row("S13", "engine vs twin: relative NE change (scores within the precision's gate)", "≤ 0.02 %", engine_equals_twin),
    Row("S14", "FLOP counter vs counted model", "< 1 %", flop_counter_equals_count),
    Row(
        "S18",
        "requests whose scores differ in a bit with other batch mates, cache state and restart",
        "0",
        same_bits_whatever_the_batch,
    ),
)
