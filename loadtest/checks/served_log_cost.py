"""What the training log costs a server: `python -m loadtest.checks.served_log_cost`.

One Rank of 100 returned items, with histories of 100 events, on the schema that `make demo` uses on synthetic data: the time
that logging it takes on the event loop (which Ranks share), the time in the writer's thread, and its bytes in the store.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from model.cli.console import note
from model.data.synthetic import START_MS, category_name, item_name, synthetic_schema, user_name
from model.hashing import string_key, string_keys
from model.records import ARRIVAL_MS, ITEM, TIME_MS, Records, event_dtype, feature_dtype, missing_records
from model.schema import Schema
from serving.core.types import CandidateBlock, RankRequest, RankResult, Rung, ServedFeatures, StageTimes
from serving.feedback.receipt import ReceiptSigner, ServedList
from serving.store.embedded import EmbeddedValkey
from serving.store.redis_store import RedisStore
from serving.training_log.served_log import ServedLogFormat, entry_of
from serving.training_log.served_writer import ServedLog

SEED = 20_261_126
Answered = tuple[ServedList, bytes, RankRequest, RankResult]


def served_log_cost(lists: int = 1_000, events: int = 100, items: int = 100) -> dict[str, Any]:
    """Figures per list: median µs on the event loop (`add_us`) and to encode, bytes alone and in the store."""
    schema = synthetic_schema(history_cap=events)
    rng = np.random.default_rng(SEED)
    signer = ReceiptSigner({0: rng.bytes(32)}, 0)
    return asyncio.run(_measure(schema, [_answered(schema, signer, n, events, items, rng) for n in range(lists)]))


async def _measure(schema: Schema, answered: Sequence[Answered]) -> dict[str, Any]:
    server = EmbeddedValkey()
    store = RedisStore(server.url, schema)
    counts = {"stored": 0, "dropped": 0, "skipped": 0}

    class Observer:
        def served_log(self, outcome: str, count: int) -> None:
            counts[outcome] += count

    log = ServedLog(store, schema, 1.0, Observer(), max_bytes=1 << 30)
    written = ServedLogFormat(schema)
    writing = asyncio.create_task(log.run())
    try:
        (before,) = await store.nodes.on_every_node("INFO", "memory")
        adds, encodes, sizes = [], [], []
        for served, receipt, request, result in answered:
            began = time.perf_counter()
            log.add(served, receipt, request, result)
            added = time.perf_counter()
            data = written.encode(entry_of(served, receipt, request, result))
            encodes.append(time.perf_counter() - added)
            adds.append(added - began)
            sizes.append(len(data))
        began = time.perf_counter()
        await log.flush(60.0)
        seconds = time.perf_counter() - began
        (after,) = await store.nodes.on_every_node("INFO", "memory")
    finally:
        writing.cancel()
        await store.close()
        server.close()
    assert counts["stored"] == len(answered), counts
    features = answered[0][3].features
    assert features is not None
    return {
        "add_us": round(1e6 * float(np.median(adds)), 2),
        "encode_us": round(1e6 * float(np.median(encodes)), 1),
        "write_us_per_list": round(1e6 * seconds / len(answered), 1),
        "entry_bytes": round(float(np.mean(sizes))),
        "store_bytes_per_list": round((_used(after) - _used(before)) / len(answered)),
        "record_bytes": features.nbytes,
        "lists": len(answered),
        "events": sum(map(len, features.histories.values())),
        "items": len(features.items),
    }


def _used(info: bytes) -> int:
    """Bytes in use, of the reply to INFO."""
    (line,) = [line for line in info.decode().splitlines() if line.startswith("used_memory:")]
    return int(line.partition(":")[2])


def _answered(
    schema: Schema, signer: ReceiptSigner, number: int, events: int, items: int, rng: np.random.Generator
) -> Answered:
    """A Rank as the core answers it, of a synthetic user: categories and items repeat as they do in real histories."""
    user, now = user_name(int(rng.integers(1_500))), START_MS + 60_000 * number
    candidates = string_keys([item_name(i) for i in rng.choice(400, items, replace=False).tolist()], schema.hash)
    context = missing_records(feature_dtype(schema.context), 1)
    context["surface"] = string_key("surface-1", schema.hash)
    block = CandidateBlock(candidates)
    request = RankRequest(f"request-{number}", user, 0, block, context, now, 0.0, 0.0, keeps_features=True)
    records = missing_records(feature_dtype(schema.item_features), items)
    records["category"] = _categories(schema, items, rng)
    records["price"] = rng.lognormal(2, 1, items)
    shares = [0.75] + [0.25 / (len(schema.events) - 1)] * (len(schema.events) - 1)
    histories = {
        event.name: _history(schema, event.name, round(events * share), now, rng)
        for event, share in zip(schema.events, shares, strict=True)
    }
    person = missing_records(feature_dtype(schema.user), 1)
    features = ServedFeatures(user=person, has_user=True, histories=histories, items=records, is_intact=True)
    order, probabilities = rng.permutation(items), rng.random((items, len(schema.tasks))).astype(np.float32)
    result = RankResult(
        *("synthetic", "1", order, probabilities, probabilities[:, 0].astype(np.float64), Rung.FULL, "", 0, events, True, 0),
        *(False, StageTimes()),
    )
    result = replace(result, features=features)
    served = ServedList(
        request.request_id, now + 5, "1", "surface-1", 1, candidates[order], probabilities, tuple(t.name for t in schema.tasks)
    )
    return served, signer.sign(served), request, result


def _history(schema: Schema, name: str, length: int, now_ms: int, rng: np.random.Generator) -> Records:
    history = missing_records(event_dtype(schema.event(name)), length)
    history[ITEM] = string_keys([item_name(i) for i in rng.integers(0, 400, length).tolist()], schema.hash)
    history["category"] = _categories(schema, length, rng)
    history[TIME_MS] = np.sort(now_ms - rng.integers(0, 14 * 86_400_000, length))
    history[ARRIVAL_MS] = history[TIME_MS] + rng.integers(0, 1_000, length)
    return history


def _categories(schema: Schema, count: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    return string_keys([category_name(c) for c in rng.integers(0, 6, count).tolist()], schema.hash)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.served_log_cost", description=__doc__)
    parser.add_argument("--lists", type=int, default=1_000, help="Ranks to log (default: 1000)")
    found = served_log_cost(parser.parse_args().lists)
    note(
        f"a list of {found['items']} items and {found['events']} events: {found['add_us']} µs on the event loop, "
        f"{found['encode_us']} µs to encode, {found['store_bytes_per_list']:,} bytes in the store"
    )
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
