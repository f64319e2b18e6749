"""Digests of a canonical log: whether a run, a study or a figure belongs to the log that is given now.

Users and items go in by their keys, never by their numbers, which depend on the order in which a log was read: a log in memory
and the same log in mapped files have one digest. Everything is read once, some thousand rows at a time; about half a
second per million events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.request_log import BLOCK_REQUESTS, BLOCK_SHOWN, ArrivalLog, RequestLog


def identity_digest(log: RequestLog) -> str:
    """SHA-256 over the schema and every request's id and time; of a down-sampled log also over what was kept."""
    digest = hashlib.sha256(log.schema.digest.encode())
    for start in range(0, len(log), BLOCK_REQUESTS):
        digest.update(("\n" * (start > 0) + "\n".join(log.request_ids[start : start + BLOCK_REQUESTS])).encode())
    digest.update(np.ascontiguousarray(log.time_ms).data)
    if log.negative_rate < 1:
        digest.update(repr(log.negative_rate).encode())
        digest.update(np.ascontiguousarray(log.offsets).data)
        digest.update(np.ascontiguousarray(log.item_index).data)
    return digest.hexdigest()


def log_digest(log: RequestLog) -> str:
    """SHA-256 over all that training and figures read: requests, shown items, labels, features, and every user's events."""
    digest = hashlib.sha256(log.schema.digest.encode())
    digest.update(repr((len(log), len(log.item_index), log.negative_rate, sorted(log.columns), log.truth is not None)).encode())
    for array in _arrays(log):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _arrays(log: RequestLog) -> Iterator[NDArray[Any]]:
    for start in range(0, len(log), BLOCK_REQUESTS):
        part = slice(start, start + BLOCK_REQUESTS)
        ids = [identity.encode() for identity in log.request_ids[part]]
        yield np.array([len(identity) for identity in ids])
        yield np.frombuffer(b"".join(ids), np.uint8)
        yield log.time_ms[part]
        yield log.user_keys[log.user_index[part]]
        yield log.contexts[part]
        yield np.diff(log.offsets[start : start + BLOCK_REQUESTS + 1])
    shown = [log.positions, log.labels, *(log.columns[name] for name in sorted(log.columns))]
    for start in range(0, len(log.item_index), BLOCK_SHOWN):
        part = slice(start, start + BLOCK_SHOWN)
        yield log.item_keys[log.item_index[part]]
        yield from (array[part] for array in (shown if log.truth is None else [*shown, log.truth]))
    for keys, records in ((log.item_keys, log.items), (log.user_keys, log.users)):
        order = np.argsort(keys, kind="stable")
        for start in range(0, len(order), BLOCK_REQUESTS):
            part_order = order[start : start + BLOCK_REQUESTS]
            yield keys[part_order]
            yield records[part_order]
    for event in log.schema.events:
        yield from _events(log.events[event.name], log.user_keys)


def _events(arrivals: ArrivalLog, user_keys: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Keys of users, how many events each has, and these, in the order of the keys; about `BLOCK_SHOWN` events at a time."""
    sizes = np.diff(arrivals.offsets)
    users = np.flatnonzero(sizes)
    users = users[np.argsort(user_keys[users], kind="stable")]
    blocks = np.cumsum(sizes[users]) // BLOCK_SHOWN
    for own in np.split(users, np.flatnonzero(np.diff(blocks)) + 1):
        ends = np.cumsum(sizes[own])
        yield user_keys[own]
        yield sizes[own]
        yield arrivals.records[np.repeat(arrivals.offsets[own] - (ends - sizes[own]), sizes[own]) + np.arange(sizes[own].sum())]
