"""Fits feature statistics on the training part of a request log, and on nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.affinity import RateTable, rate_table
from model.data.request_log import RequestLog
from model.features import FeatureEncoder, FeatureStats, fit_affinity_moments, fit_stats
from model.history import arrived_before, newest_event_ms

PRIOR_STRENGTH = 20.0
"""Impressions at the base rate that every item is taken to have had."""
AFFINITY_SAMPLE = 2000
"""Training requests, spread evenly, that the moments of affinities are taken from."""


def fit_features(log: RequestLog, train: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> FeatureStats:
    """Moments, boundaries and vocabularies of the training requests.

    Events count only where they had arrived before their user's last training request; items and
    users only where training saw them. `kept` [C]: the shown items that training sees (all unless given).
    """
    last_seen = np.zeros(len(log.user_ids), dtype=np.int64)
    np.maximum.at(last_seen, log.user_index[train], log.time_ms[train])
    shown = every = log.rows_of(train)
    if kept is not None:
        shown = shown[kept[shown]]
    seen_items, seen_users = np.unique(log.item_index[shown]), np.unique(log.user_index[train])
    events = {}
    for event in log.schema.events:
        arrivals = log.events[event.name]
        parts = [arrived_before(arrivals.of_user(int(u)), int(last_seen[u])) for u in seen_users]
        events[event.name] = np.concatenate(parts) if parts else arrivals.records[:0]
    newest = [newest_event_ms(list(log.histories(int(r)).values())) for r in train]
    stats = fit_stats(
        log.schema,
        users=log.users[seen_users],
        user_keys=log.user_keys[log.user_index[train]],
        contexts=log.contexts[train],
        request_ms=log.time_ms[train],
        newest_ms=np.array([-1 if n is None else n for n in newest], dtype=np.int64),
        items=log.items[seen_items],
        item_keys=log.item_keys[log.item_index[shown]],
        events=events,
        rates=_rates(log, every),
    )
    if not log.schema.affinities:
        return stats
    encoder = FeatureEncoder(log.schema, stats)
    sample = train[:: max(1, len(train) // AFFINITY_SAMPLE)]
    items = [log.item_index[log.shown(int(r))] for r in sample]
    rows = (encoder.encode_items(log.item_keys[i], log.items[i]).rows for i in items)
    return fit_affinity_moments(
        encoder, [encoder.encode_affinities(own, log.histories(int(r))) for own, r in zip(rows, sample, strict=True)]
    )


def _rates(log: RequestLog, shown: NDArray[np.int64]) -> dict[str, RateTable]:
    """Success rates of items per affinity, from labels of all shown items of training, of the full distribution."""
    tasks = [t.name for t in log.schema.tasks]
    keys, weights = log.item_keys[log.item_index[shown]], log.weights()[shown]
    return {
        a.name: rate_table(keys, log.labels[shown, tasks.index(a.outcome)], weights, PRIOR_STRENGTH)
        for a in log.schema.affinities
    }
