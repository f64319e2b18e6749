"""Parts of a log for which figures are stated beside the whole: the schema's slice feature, and how long histories are.

Torch-free, vectorised. Names are ``<feature>=<value>`` and ``history=<from>-<to>`` (events that had arrived, of all types,
before any cap). Used by `kunlun evaluate` and the checks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.data.canonical import LogFile
from model.data.request_log import RequestLog
from model.records import ARRIVAL_MS

HISTORY_FROM = (0, 1, 8, 32)
"""First length of every band of history lengths; the last one is open."""
LARGEST_SLICES = 12
"""Values of the slice feature beyond the most frequent ones are put together as ``<feature>=other``."""


def slices_of(log: RequestLog, directory: str | Path) -> dict[str, NDArray[np.int64]]:
    """Request numbers by slice; `directory` is where `log` was loaded from. Slices without requests are left out."""
    return slices_by_feature(log, directory) | slices_by_history(log)


def slices_by_feature(log: RequestLog, directory: str | Path) -> dict[str, NDArray[np.int64]]:
    """Requests by value of the schema's slice feature; empty when it declares none."""
    feature = log.schema.slice
    if feature is None:
        return {}
    table = pq.read_table(Path(directory) / f"{LogFile.REQUESTS}.parquet", columns=["request_id", feature])
    text_of = dict(zip(table["request_id"].to_pylist(), map(str, table[feature].to_pylist()), strict=True))
    values, number = np.unique([text_of[r] for r in log.request_ids], return_inverse=True)
    frequent = np.argsort(-np.bincount(number), kind="stable")
    found = {f"{feature}={values[v]}": np.flatnonzero(number == v) for v in np.sort(frequent[:LARGEST_SLICES])}
    rest = np.flatnonzero(np.isin(number, frequent[LARGEST_SLICES:]))
    return found | ({f"{feature}=other": rest} if len(rest) else {})


def slices_by_history(log: RequestLog) -> dict[str, NDArray[np.int64]]:
    """Requests by the number of events that had arrived before them."""
    counts = arrived_events(log)
    ends = [*HISTORY_FROM[1:], np.iinfo(np.int64).max]
    bands = (
        (begin, end, np.flatnonzero((counts >= begin) & (counts < end))) for begin, end in zip(HISTORY_FROM, ends, strict=True)
    )
    return {_band(begin, end): requests for begin, end, requests in bands if len(requests)}


def _band(begin: int, end: int) -> str:
    if end == np.iinfo(np.int64).max:
        return f"history={begin}+"
    return f"history={begin}" if end == begin + 1 else f"history={begin}-{end - 1}"


def arrived_events(log: RequestLog) -> NDArray[np.int64]:
    """Events of all types of a request's user that had arrived strictly before it, before any cap and folding, [N]."""
    order = np.lexsort((log.time_ms, log.user_index))  # requests by user and time, like the events
    found = np.zeros(len(log), np.int64)
    for arrivals in log.events.values():
        times = arrivals.records[ARRIVAL_MS].astype(np.int64)
        owner = np.repeat(np.arange(len(arrivals.offsets) - 1), np.diff(arrivals.offsets))
        rank = _before(owner, times, log.user_index[order], log.time_ms[order])
        found[order] += rank - arrivals.offsets[log.user_index[order]]
    return found


def _before(
    owners: NDArray[np.int64], times: NDArray[np.int64], users: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many (owner, time) pairs are below each (user, at) pair; both sorted by the pair."""
    both = np.lexsort(
        (np.repeat([1, 0], [len(owners), len(users)]), np.concatenate([times, at]), np.concatenate([owners, users]))
    )
    is_event = both < len(owners)
    below = np.cumsum(is_event)
    found = np.empty(len(users), np.int64)
    found[both[~is_event] - len(owners)] = below[~is_event]
    return found
