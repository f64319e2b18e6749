"""`make feedback-check`: what feedback promises besides S12, on real servers, a real store and a real Prometheus.

* a fleet of three under shuffled, repeated, split outcomes with its consumer killed: sums, recording rules, and the
  exported training log against the log that was replayed;
* a model trained on a share of the negatives: NE and calibration of what it serves;
* the verdict on simulated canaries;
* a planted shift of scores and of label rates, seen as drift;
* what an impression costs: CPU time of signing, taking and counting it, and bytes in the store; and what a logged list does.

The last line is one JSON object with `ok`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import redis
import yaml

from loadtest.bench import Bench
from loadtest.checks.canary_simulation import SEED as CANARY_SEED
from loadtest.checks.canary_simulation import simulate
from loadtest.checks.check import Check, run_checks
from loadtest.checks.served_log_cost import served_log_cost
from loadtest.fleet_feedback import ReplayedFleet, metrics_of, replayed_fleet
from loadtest.pipeline import Pipeline
from loadtest.processes import run_stage
from loadtest.prometheus_process import is_installed
from loadtest.prometheus_text import total
from model.config import parse_yaml
from model.data.request_log import RequestLog, load_request_log
from model.metrics.score_histogram import population_stability_index, rate_stability_index, score_histogram
from model.records import ARRIVAL_MS
from model.schema import Schema
from serving.feedback.consumer import BATCH, FeedbackConsumer
from serving.feedback.ledger import MINUTE_MS
from serving.feedback.outcome import encode_outcome
from serving.feedback.receipt import ReceiptSigner, ServedList
from serving.store.embedded import EmbeddedValkey
from serving.store.feedback_state import FeedbackState
from serving.store.redis_store import RedisStore

SEED = 20_261_125
HOUR_MS = 3_600_000
SHIFTED = 0.25
"""Stability index from which a distribution is commonly called shifted."""

SCHEMA = """
name: check
tables: {item: {width: 4}}
item: {id_type: int64, table: item}
events: [{name: click, cap: 8}]
tasks: [{name: click}, {name: like}]
value: p_click
"""


def fleet_checks(data: Path | None, workdir: Path) -> list[Check]:
    """Sums equal a recomputation, PromQL agrees after one window, and what was served can be exported as it was."""
    bench = Bench(Pipeline(workdir, data), requests=1000)
    with replayed_fleet(bench, 3, SEED, window="10m" if is_installed() else "", served_log_rate=1.0) as fleet:
        figures: dict[str, Any] = {
            "log": _log_name(data),
            "impressions": fleet.impressions,
            "outcomes": fleet.outcomes,
            "replicas": 3,
            "consumers_killed": 1,
            "worst_relative_difference": fleet.worst_sum(),
            "worst_rule": round(fleet.worst_rule(), 6) if is_installed() else "not verified: prometheus is not installed",
        }
        page = metrics_of(fleet.survivors[0])
        figures["score_psi"] = {task: round(total(page, "kunlun_score_psi", task=task), 4) for task in fleet.offline}
        exported = _training_log(bench, fleet)
    ok = figures["worst_relative_difference"] < 1e-6 and (not is_installed() or figures["worst_rule"] <= 0.01)
    return [Check("fleet", figures, "sums < 1e-6, recording rules within 1 %", ok), exported]


def _training_log(bench: Bench, fleet: ReplayedFleet) -> Check:
    """Rows of `kunlun log export` that differ from the log that was replayed; arrival times are those of the replay."""
    output = bench.pipeline.path("served")
    store = ["--store", fleet.survivors[0].store, "--repository", bench.pipeline.models]
    report = run_stage(["log", "export", *store, "--output", output, "--include-immature"])
    log, exported = bench.replay.log, load_request_log(output)
    number_of = {request: number for number, request in enumerate(exported.request_ids)}
    rows = differing = 0
    for wanted in fleet.requests.tolist():
        found = number_of.get(log.request_ids[wanted])
        before, after = _rows_of(log, wanted), None if found is None else _rows_of(exported, found)
        rows += len(before)
        differing += len(before) if after is None else len(before.items() ^ after.items())
    figures = {"log": _log_name(bench.pipeline.data), "lists": len(exported), "rows": rows, "differing": differing}
    figures["seconds"] = report["seconds"]
    return Check(
        "training_log", figures, "0 rows differ, every list exported", differing == 0 and len(exported) == len(fleet.requests)
    )


def _rows_of(log: RequestLog, number: int) -> dict[object, bytes]:
    """Everything of one request: user, context, items with their features and labels, histories but for arrival times."""
    user, shown = int(log.user_index[number]), log.shown(number)
    rows: dict[object, bytes] = {"user": log.user_ids[user].encode() + log.users[user].tobytes()}
    rows["context"] = log.contexts[number].tobytes()
    for item, labels in zip(log.item_index[shown].tolist(), log.labels[shown], strict=True):
        rows["item", int(log.item_keys[item])] = log.items[item].tobytes() + labels.tobytes()
    for event, history in log.histories(number).items():
        kept = [name for name in history.dtype.names or () if name != ARRIVAL_MS]
        for at, record in enumerate(history[::-1]):
            rows[event, at] = b"".join(record[name].tobytes() for name in kept)
    return rows


def down_sampling_check(data: Path | None, workdir: Path, rate: float = 0.25) -> Check:
    """A model trained on a share of the negatives, served: NE and calibration online, beside those of all negatives."""
    whole = Bench(Pipeline(workdir, data), requests=1000)
    whole.build()
    config = yaml.safe_load(whole.pipeline.config_path.read_text(encoding="utf-8"))
    sampled = Bench(Pipeline(workdir / "sampled", data, config=workdir / "sampled.yaml"), requests=1000)
    (workdir / "sampled.yaml").write_text(yaml.safe_dump(config | {"negative_rate": rate}), encoding="utf-8")
    figures: dict[str, Any] = {"log": _log_name(data), "negative_rate": rate}
    ok = True
    for name, bench in (("all_negatives", whole), ("sampled", sampled)):
        with replayed_fleet(bench, 2, SEED) as fleet:
            assert fleet.worst_sum() < 1e-6
            states = fleet.offline
        figures[name] = {
            task: {"ne": round(state.normalized_entropy, 4), "calibration": round(state.calibration, 4)}
            for task, state in states.items()
        }
    for task, found in figures["sampled"].items():
        wanted = figures["all_negatives"][task]
        ok = ok and found["ne"] <= 1.02 * wanted["ne"] and abs(found["calibration"] / wanted["calibration"] - 1) <= 0.1
    target = "NE within 2 % and calibration within 10 % of the model of all negatives"
    return Check("down_sampling", figures, target, ok)


def served_log_check() -> Check:
    """What a logged Rank costs."""
    figures = served_log_cost()
    return Check("served_log_cost", figures, "≤ 20 µs on the event loop per list", figures["add_us"] <= 20)


def _log_name(data: Path | None) -> str:
    return "synthetic" if data is None else data.name


def drift_check(impressions: int = 20_000) -> Check:
    """Stability indices of the same world drawn again, and of one whose log-odds are lower by one."""
    rng = np.random.default_rng(SEED)

    def draw(mean: float) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(-rng.normal(mean, 1, impressions)))
        return score_histogram(p), rng.random(impressions) < p

    reference, labels = draw(-3.0)
    scores, rates = {}, {}
    for name, mean in (("same", -3.0), ("shifted", -4.0)):
        histogram, y = draw(mean)
        scores[name] = round(population_stability_index(reference, histogram), 4)
        rates[name] = round(rate_stability_index(float(labels.mean()), float(y.sum()), len(y)), 4)
    ok = scores["same"] < 0.1 and scores["shifted"] > SHIFTED and rates["same"] < rates["shifted"]
    figures = {"score_psi": scores, "label_rate_psi": rates, "impressions": impressions}
    return Check("drift", figures, f"scores: same < 0.1, shifted > {SHIFTED}; label rates in that order", ok)


async def cost_check(lists: int = 4000, items: int = 100, shown: int = 20) -> Check:
    """CPU time per impression on this side of the store, and bytes on the other."""
    rng, signer, schema = np.random.default_rng(SEED), ReceiptSigner({0: bytes(16)}, 0), parse_yaml(Schema, SCHEMA)
    start_ms = time.time_ns() // 1_000_000
    served = []
    for number in range(lists):
        p = rng.beta(1, 20, (items, 2)).astype(np.float32)
        keys = rng.integers(-(2**60), 2**60, items)
        served.append(ServedList(f"{number:032x}", start_ms - number * 15, "1", "home", 1, keys, p, ("click", "like")))
    seconds = {"sign": time.process_time()}
    receipts = [signer.sign(one) for one in served]
    seconds["sign"] = time.process_time() - seconds["sign"]
    seconds["verify"] = time.process_time()
    for receipt in receipts:
        signer.open(receipt, start_ms)
    seconds["verify"] = time.process_time() - seconds["verify"]
    outcomes = []
    for receipt, one in zip(receipts, served, strict=True):
        clicked = [(p, t) for p in range(shown) for t in (0, 1) if rng.random() < one.predictions[p, t]]
        outcomes.append(encode_outcome(receipt, range(shown), [], start_ms))
        outcomes += [encode_outcome(receipt, [], [pair], start_ms) for pair in clicked]
    server = EmbeddedValkey()
    store = RedisStore(server.url, schema)
    try:
        for start in range(0, len(outcomes), 500):
            await store.append_outcomes(outcomes[start : start + 500])
        consumer = FeedbackConsumer(store, HOUR_MS, HOUR_MS)
        state = FeedbackState(store, 1.0)
        began, wall = time.process_time(), time.perf_counter()
        task = asyncio.create_task(consumer.run())
        while await state.waiting_ms(await state.place()):  # noqa: ASYNC110  what is waited for is in another process
            await asyncio.sleep(0.05)
        seconds["count"], wall = time.process_time() - began, time.perf_counter() - wall
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        sizes = _sizes(server.url, store.keys.feedback)
    finally:
        await store.close()
        server.close()
    impressions = lists * shown
    figures = {
        "impressions": impressions,
        "outcomes": len(outcomes),
        "items_per_list": items,
        "shown_per_list": shown,
        "sign_us_per_list": round(1e6 * seconds["sign"] / lists, 2),
        "verify_us_per_list": round(1e6 * seconds["verify"] / lists, 2),
        "count_us_per_outcome": round(1e6 * seconds["count"] / len(outcomes), 1),
        "count_us_per_impression": round(1e6 * seconds["count"] / impressions, 2),
        "outcomes_per_s": round(len(outcomes) / wall),
        "receipt_bytes": len(receipts[0]),
        "stream_bytes_per_impression": round(sizes["outcomes"] / impressions, 1),
        "bitmap_bytes_per_list": round(sizes["seen"] / lists, 1),
        "bucket_bytes_per_minute": round(sizes["bucket"] / max(1, -(-lists * 15 // MINUTE_MS))),
        "batch": BATCH,
    }
    return Check("cost", figures, "counting ≤ 50 µs per impression", figures["count_us_per_impression"] <= 50)


def _sizes(url: str, prefix: str) -> dict[str, int]:
    """Bytes of all keys by the word after `prefix`."""
    sizes = {"outcomes": 0, "seen": 0, "bucket": 0}
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(prefix.replace("{", "\\{") + "*"):
            word = key.decode().removeprefix(prefix).partition(":")[0]
            sizes[word] = sizes.get(word, 0) + int(client.memory_usage(key, samples=0) or 0)
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.feedback", description=__doc__)
    parser.add_argument("--data", type=Path, help="log in Metarank's format for the fleet (default: synthetic)")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/bench"), help="where its model is kept (default: runs/bench)"
    )
    arguments = parser.parse_args()
    fleet = cache(lambda: fleet_checks(arguments.data, arguments.workdir))
    return run_checks(
        {
            "cost": lambda: asyncio.run(cost_check()),
            "served_log_cost": served_log_check,
            "drift": drift_check,
            "fleet": lambda: fleet()[0],
            "training_log": lambda: fleet()[1],
            "down_sampling": lambda: down_sampling_check(arguments.data, arguments.workdir),
            "canary_simulation": lambda: simulate(runs=20, null_runs=200, seed=CANARY_SEED),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
