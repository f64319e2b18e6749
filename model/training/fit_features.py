"""Fits feature statistics on the training part of a request log, and on nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.data.request_log import RequestLog
from model.features import FeatureStats, fit_stats
from model.history import arrived_before, newest_event_ms


def fit_features(log: RequestLog, train: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> FeatureStats:
    """Moments, boundaries and vocabularies of the training requests.

    Events count only where they had arrived before their user's last training request; items and
    users only where training saw them. `kept` [C]: the shown items that training sees (all unless given).
    """
    last_seen = np.zeros(len(log.user_ids), dtype=np.int64)
    np.maximum.at(last_seen, log.user_index[train], log.time_ms[train])
    shown = log.rows_of(train)
    if kept is not None:
        shown = shown[kept[shown]]
    seen_items, seen_users = np.unique(log.item_index[shown]), np.unique(log.user_index[train])
    events = {}
    for event in log.schema.events:
        arrivals = log.events[event.name]
        parts = [arrived_before(arrivals.of_user(int(u)), int(last_seen[u])) for u in seen_users]
        events[event.name] = np.concatenate(parts) if parts else arrivals.records[:0]
    newest = [newest_event_ms(list(log.histories(int(r)).values())) for r in train]
    return fit_stats(
        log.schema,
        users=log.users[seen_users],
        user_keys=log.user_keys[log.user_index[train]],
        contexts=log.contexts[train],
        request_ms=log.time_ms[train],
        newest_ms=np.array([-1 if n is None else n for n in newest], dtype=np.int64),
        items=log.items[seen_items],
        item_keys=log.item_keys[log.item_index[shown]],
        events=events,
    )
