"""Slices of a log: the schema's feature by name, and history lengths as the server would have seen them arrive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from model.data.request_log import load_request_log
from model.data.slices import arrived_events, slices_by_history, slices_of
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.history import arrived_before


def test_slices_hold_every_request_once_and_agree_with_the_log(tmp_path: Path) -> None:
    generate(SyntheticConfig(seed=3, requests=300, users=20, items=60), tmp_path / "log")
    log = load_request_log(tmp_path / "log")
    brute = [
        sum(len(arrived_before(a.of_user(int(u)), int(t))) for a in log.events.values())
        for u, t in zip(log.user_index, log.time_ms, strict=True)
    ]
    assert arrived_events(log).tolist() == brute
    by_history = slices_by_history(log)
    assert np.sort(np.concatenate(list(by_history.values()))).tolist() == list(range(300))
    assert [int(arrived_events(log)[r].max()) for n, r in by_history.items() if n == "history=0"] == [0]
    surfaces = {n: r for n, r in slices_of(log, tmp_path / "log").items() if n.startswith("surface=")}
    assert sorted(surfaces) == [f"surface=surface-{s}" for s in range(3)]
    table = pq.read_table(tmp_path / "log" / "requests.parquet")
    surface_of = dict(zip(table["request_id"].to_pylist(), table["surface"].to_pylist(), strict=True))
    for name, requests in surfaces.items():
        assert {f"surface={surface_of[log.request_ids[r]]}" for r in requests} == {name}
