"""Rows of sharing and of the engine: one user for many candidates, cached states, MFU at saturation (S5, S6, S15)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from kunlun.client import Client
from loadtest.bench import Bench, precisions
from loadtest.history_fill import fill_histories
from loadtest.processes import RunningServer
from loadtest.scoreboard.figure import Figure, Row
from loadtest.scoreboard.load_rows import APART, SEED, conditions, loaded
from model.artifact import open_artifact
from model.cli.console import note
from model.flops import FlopModel
from serving.config import ServerConfig, artifact_path

HISTORY, USERS, ROUNDS = 256, 1200, 40


def one_user_many_candidates(bench: Bench) -> Figure:
    """S5: N × (user, 1 candidate) ÷ 1 × (user, N), every state encoded anew, by time against by FLOPs."""
    flops = _flops(bench.small)
    core = {"user_state_cache_mb": 1e-6, "degrade": False}  # holds one state
    ratios, details = {}, dict[str, Any]()
    with bench.small.server(APART | {"slots": 1, "core": APART["core"] | core}) as server:
        fill_histories(bench.small, server, users=USERS, length=HISTORY)
        with Client(server.address, timeout_s=10) as client:
            users = iter(range(10**9))
            _times(client, users, 24, 60)  # connections, caches, shapes
            one = _times(client, users, 1, 300)
            for count in (24, 100, 256):
                many = _times(client, users, count, ROUNDS)
                measured = count * one / many
                predicted = count * _request(flops, 1, encoded=1) / _request(flops, count, encoded=1)
                ratios[count] = measured / predicted
                details[f"saving_{count}"] = f"{measured:.1f} of {predicted:.1f}"
                note(f"N = {count}: {measured:.1f}× measured, {predicted:.1f}× by FLOPs")
    value = min(ratios.values())
    return Figure(
        round(value, 3), value >= 0.9, details | {"history": HISTORY, "model": "small", "ms_one": round(one * 1e3, 2)}
    )


def cached_states(bench: Bench) -> Figure:
    """S6: mean time of a Rank when every state is encoded ÷ when nine of ten are cached, against the FLOP count."""
    flops = _flops(bench.small)
    ratios, details = {}, dict[str, Any]()
    for count in (24, 100):
        with bench.small.server(APART | {"slots": 1, "core": APART["core"] | {"degrade": False}}) as server:
            fill_histories(bench.small, server, users=USERS, length=HISTORY)
            cold, warm = _cold_and_repeat(server, count)
        measured = cold / warm
        predicted = _request(flops, count, encoded=1) / _request(flops, count, encoded=0.1)
        ratios[count] = measured / predicted
        details[f"speed_up_{count}"] = f"{measured:.2f} of {predicted:.2f}"
        note(f"N = {count}: {measured:.2f}× measured, {predicted:.2f}× by FLOPs")
    value = min(ratios.values())
    return Figure(round(value, 3), value >= 0.9, details | {"history": HISTORY, "model": "small", "hits": 0.9})


def _cold_and_repeat(server: RunningServer, count: int) -> tuple[float, float]:
    """Mean seconds of a Rank for new users, and of one whose user is new in one of ten cases."""
    with Client(server.address, timeout_s=10) as client:
        fresh = iter(range(USERS))
        _times(client, fresh, count, 60)
        cold = _times(client, fresh, count, 400)
        users = (next(fresh) if n % 10 == 0 else n % 60 for n in range(10**9))
        return cold, _times(client, users, count, 400)


def busy_mfu(bench: Bench) -> Figure:
    """S15: useful FLOPs ÷ (engine busy seconds × matrix-product peak) while the queue is never empty."""
    values, last = {}, None
    for precision in precisions():
        with loaded(bench, APART, precision=precision, degrade=False, max_queue=1000) as at:
            rate = 1.5 / (at.run(40).counted.busy_s / 40 / 10)
            last = at.run(rate, 15.0, deadline_ms=4000)
            values[precision] = last.counted.useful_flops / last.counted.busy_s / at.device_peak_flops()
            executed = last.counted.executed_flops / last.counted.busy_s / at.device_peak_flops()
            note(f"{precision}: busy MFU {values[precision]:.3f} (executed {executed:.3f})")
    assert last is not None
    value = min(values.values())
    figures = {f"mfu_{name}": round(v, 3) for name, v in values.items()}
    padding = 1 - last.counted.useful_flops / last.counted.executed_flops
    return Figure(round(value, 3), value >= 0.6, figures | {"padding": round(padding, 3)} | conditions(last, "each"))


def _times(client: Client, users: Any, count: int, rounds: int) -> float:
    """Mean seconds of `rounds` Ranks of `count` candidates, one after the other, the slowest tenth left out."""
    rng, seconds = np.random.default_rng(SEED), []
    for _ in range(rounds):
        user = next(users) % USERS
        items = [f"i{i}" for i in rng.choice(2000, count, replace=False)]
        began = time.perf_counter()
        reply = client.rank(f"u{user}", items, context={"surface": "surface-0"})
        seconds.append(time.perf_counter() - began)
        assert reply.rung == "FULL", reply.rung_reason
    return float(np.mean(np.sort(seconds)[: max(1, round(0.9 * rounds))]))


def _flops(small: Bench) -> FlopModel:
    small.build()
    artifact = open_artifact(artifact_path(ServerConfig(repository=small.pipeline.workdir / "models")))
    return FlopModel.from_json(artifact.manifest.flops, artifact.config)


def _request(flops: FlopModel, candidates: int, encoded: float) -> float:
    lengths = dict.fromkeys(flops.widths.caps, 0) | {"click": HISTORY}
    return encoded * flops.encode(lengths).total + flops.score(1, candidates).total


ENGINE = (
    Row(
        "S5",
        "saving of 1 user × N candidates over N × (user, 1) ÷ the FLOP count's prediction",
        "≥ 0.9",
        one_user_many_candidates,
    ),
    Row("S6", "speed-up at 90 % state-cache hits ÷ the FLOP count's prediction", "≥ 0.9", cached_states),
    Row("S15", "busy MFU at saturation, the lower of f32 and bf16", "≥ 0.6", busy_mfu),
)
