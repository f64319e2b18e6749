"""Fills a store with users `u0` … whose histories have a given length, through `kunlun load`."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.bench import Bench
from loadtest.processes import RunningServer

GAP_MS = 60_000


def fill_histories(bench: Bench, server: RunningServer, users: int, length: int, seed: int = 0) -> None:
    """`length` clicks for each of `users` users, a minute apart and the last one a minute ago."""
    rng = np.random.default_rng(seed)
    now, count = int(time.time() * 1e3), users * length
    user, step = np.divmod(np.arange(count), length)
    times = now - (length - step) * GAP_MS
    items = rng.integers(0, len(bench.replay.log.item_ids), count)
    table = pa.table(
        {
            "event_id": [f"fill-{u}-{s}" for u, s in zip(user.tolist(), step.tolist(), strict=True)],
            "user_id": [f"u{u}" for u in user.tolist()],
            "type": ["click"] * count,
            "item_id": [bench.replay.log.item_ids[i] for i in items.tolist()],
            "time_ms": times,
            "arrival_ms": times,
            "click.category": [f"category-{c}" for c in rng.integers(0, 6, count).tolist()],
            "cart.category": pa.nulls(count, pa.string()),
        }
    )
    file = bench.pipeline.workdir / "filled_events.parquet"
    pq.write_table(table, file)
    bench.pipeline.stage(
        "load", "filling the store", bench.pipeline.path("data"), "--store", server.store, "--events", str(file)
    )
