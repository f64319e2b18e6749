"""Fits feature statistics on the training part of a request log, and on nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.affinity import RateTable, counted_rates
from model.data.request_log import RequestLog
from model.feature_fit import FeatureFit
from model.features import FeatureEncoder, FeatureStats, fit_affinity_moments
from model.history import arrived_before, newest_event_ms
from model.training.label_counts import label_counts

BLOCK_EVENTS = 1 << 20
PRIOR_STRENGTH = 20.0
"""Impressions at the base rate that every item is taken to have had."""
AFFINITY_SAMPLE = 2000
"""At least so many training requests, and less than twice as many, spread evenly, give the moments of affinities."""


def fit_features(log: RequestLog, train: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> FeatureStats:
    """Moments, boundaries and vocabularies of the training requests, read in blocks.

    Events count only where they had arrived before their user's last training request; items and
    users only where training saw them. `kept` [C]: the shown items that training sees (all unless given).
    """
    fit = FeatureFit(log.schema)
    last_seen = np.full(len(log.user_ids), -1, dtype=np.int64)
    is_seen = np.zeros(len(log.item_keys), bool)
    for requests in log.blocks(train):
        users = log.user_index[requests]
        np.maximum.at(last_seen, users, log.time_ms[requests])
        shown = log.rows_of(requests)
        items = log.item_index[shown if kept is None else shown[kept[shown]]]
        is_seen[items] = True
        fit.shown(log.item_keys[items])
        newest = [newest_event_ms(list(log.histories(int(r)).values())) for r in requests]
        newest_ms = np.array([-1 if n is None else n for n in newest], dtype=np.int64)
        fit.requests(log.contexts[requests], log.user_keys[users], log.time_ms[requests], newest_ms)
    seen_users = np.flatnonzero(last_seen >= 0)
    fit.users(log.users[seen_users])
    fit.items(log.items[is_seen])
    for event in log.schema.events:
        arrivals = log.events[event.name]
        parts, count = [arrivals.records[:0]], 0
        for user in seen_users.tolist():
            parts.append(arrived_before(arrivals.of_user(user), int(last_seen[user])))
            count += len(parts[-1])
            if count > BLOCK_EVENTS:
                fit.events(event.name, np.concatenate(parts))
                parts, count = [arrivals.records[:0]], 0
        fit.events(event.name, np.concatenate(parts))
    stats = fit.stats(_rates(log, train))
    if not log.schema.affinities:
        return stats
    encoder = FeatureEncoder(log.schema, stats)
    sample = train[:: max(1, len(train) // AFFINITY_SAMPLE)]
    items_of = [log.item_index[log.shown(int(r))] for r in sample]
    rows = (encoder.encode_items(log.item_keys[i], log.items[i]).rows for i in items_of)
    records = (encoder.affinity_record(log.histories(int(r))) for r in sample)
    return fit_affinity_moments(encoder, map(encoder.encode_affinities, rows, records))


def _rates(log: RequestLog, train: NDArray[np.int64]) -> dict[str, RateTable]:
    """Success rates of items per affinity, from labels of all shown items of training, of the full distribution."""
    if not log.schema.affinities:
        return {}
    counted, positives = label_counts(log, train)
    tables = {}
    for affinity in log.schema.affinities:
        task = [t.name for t in log.schema.tasks].index(affinity.outcome)
        seen = np.flatnonzero(counted[:, task] > 0)
        seen = seen[np.argsort(log.item_keys[seen])]
        tables[affinity.name] = counted_rates(log.item_keys[seen], positives[seen, task], counted[seen, task], PRIOR_STRENGTH)
    return tables
