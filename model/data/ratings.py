"""Adapter: ratings (user, item, rating, time), as in MovieLens → the canonical log.

A rating is a shown item that the user judged: its label is 1 from `like_from` on, else 0. Ratings that a user gave at the same
time form one request, since none of them can have been known to another; positions are unknown. Every rating also becomes
an event, `like` or `dislike` by the same threshold, and `rating` where the schema declares that type; the attribute
`rating` of an event is its value. So a request sees what its user had rated before, never itself.

`negatives` items per liked one are drawn from those that the user has not rated by then, and shown in the same request with
label 0, in random order. An item is there from its first rating by anyone on, so a negative says nothing of the future: neither
that an item will come out, nor what the user will rate later. The task then is to tell what is liked from what was not met
so far, and probabilities are those of this mixture.

Cost: 28 bytes per rating and the distinct ids, in memory; one pass over the file.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.config import ConfigError
from model.data.canonical import LogFile, check_output, entity_columns, id_type_of, write_log
from model.data.cells import CellRejected, TimeUnit, features_by_id, id_of, number_of, text_of, time_ms_of
from model.data.delimited import Delimited
from model.data.rejects import Tally
from model.schema import FeatureKind, IdType, Schema

ALIASES = {
    "user": ("user", "user_id", "userId", "UserID"),
    "item": ("item", "item_id", "itemId", "movieId", "MovieID"),
    "rating": ("rating", "Rating"),
    "time": ("time", "timestamp", "Timestamp"),
}
LIKE, DISLIKE, RATING = "like", "dislike", "rating"


@dataclass(frozen=True)
class RatingsConfig:
    """How to read ratings. `columns`: header names of user, item, rating and time where they are not among `ALIASES`."""

    like_from: float = 4.0
    time_unit: TimeUnit = TimeUnit.SECONDS
    negatives: int = 0
    seed: int = 0
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class _Ids:
    """Distinct ids and the number of each."""

    numbers: dict[Any, int] = field(default_factory=dict)

    def of(self, identity: Any) -> int:
        return self.numbers.setdefault(identity, len(self.numbers))

    @property
    def texts(self) -> NDArray[Any]:
        found = np.empty(len(self.numbers), dtype=object)
        found[:] = list(self.numbers)
        return found


def convert_ratings(
    source: Delimited,
    directory: Path,
    schema: Schema,
    config: RatingsConfig,
    *,
    items: Delimited | None = None,
    users: Delimited | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Convert; `items` and `users` are files of features by id. Returns ``dataset.json``. Raises `ConfigError`."""
    events = {e.name for e in schema.events} & {LIKE, DISLIKE, RATING}
    if len(schema.tasks) != 1 or len(events) != len(schema.events):
        raise ConfigError(
            f"schema {schema.name!r}: expected one task and events among {LIKE}, {DISLIKE} and {RATING}, found tasks "
            f"{', '.join(t.name for t in schema.tasks)} and events {', '.join(e.name for e in schema.events)}"
        )
    check_output(directory)
    rejected, notes = Tally(), Tally()
    read = _read(source, schema, config, rejected, progress)
    item_rows: dict[Any, dict[str, Any]] = {}
    user_rows: dict[Any, dict[str, Any]] = {}
    if items is not None:
        column = _column("item", items.names(), config)
        item_rows = features_by_id(items, column, schema.item.id_type, schema.item_features, rejected, notes)
    if users is not None:
        column = _column("user", users.names(), config)
        user_rows = features_by_id(users, column, IdType.STRING, schema.user, rejected, notes)
    requests, shown = _requests(read, schema, config)
    info = {
        "source": {"kind": "ratings", "file": source.path.name, "like_from": config.like_from, "negatives": config.negatives},
        "counts": {
            "requests": len(requests["request_id"]),
            "impressions": shown,
            "users": len(read.users.numbers.keys() | user_rows.keys()),
            "items": len(read.items.numbers.keys() | item_rows.keys()),
            "events": {e.name: int(_of_type(e.name, read.liked).sum()) for e in schema.events},
            "positives": {schema.tasks[0].name: int(read.liked.sum())},
        },
        "rejected": rejected.to_json(),
        "notes": notes.to_json(),
    }
    tables = {
        LogFile.REQUESTS: requests,
        LogFile.ITEMS: entity_columns("item_id", item_rows, schema.item_features),
        LogFile.USERS: entity_columns("user_id", user_rows, schema.user),
        LogFile.EVENTS: _events(read, schema),
    }
    write_log(directory, schema, tables, info)
    return info


@dataclass(frozen=True)
class _Ratings:
    """Ratings [N] ordered by user, then time; ids by number."""

    users: _Ids
    items: _Ids
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    time_ms: NDArray[np.int64]
    liked: NDArray[np.bool_]


def _column(kind: str, names: Sequence[str], config: RatingsConfig) -> str:
    """The header name of a kind of column: the configured one, else the first known one that is there."""
    return config.columns.get(kind) or next((alias for alias in ALIASES[kind] if alias in names), kind)


def _read(
    source: Delimited, schema: Schema, config: RatingsConfig, rejected: Tally, progress: Callable[[int], None]
) -> _Ratings:
    names = source.names()
    columns = [_column(kind, names, config) for kind in ALIASES]
    users, items = _Ids(), _Ids()
    user, item, rating, time, lines = array("i"), array("i"), array("f"), array("q"), array("q")
    for count, (line, (user_text, item_text, rating_text, time_text)) in enumerate(source.rows(columns, rejected)):
        try:
            row = (
                text_of(user_text, columns[0]),
                id_of(item_text, columns[1], schema.item.id_type),
                number_of(rating_text, columns[2]),
                time_ms_of(time_text, columns[3], config.time_unit),
            )
        except CellRejected as reason:
            rejected.add(str(reason), f"line {line}")
            continue
        user.append(users.of(row[0]))
        item.append(items.of(row[1]))
        rating.append(row[2])
        time.append(row[3])
        lines.append(line)
        if count % 100_000 == 0:
            progress(count)
    if not user:
        raise ConfigError(f"{source.path}: no usable rating; rejected: {'; '.join(rejected.lines()) or 'nothing'}")
    codes = np.array(user, np.int32), np.array(item, np.int32), np.array(rating, np.float32), np.array(time, np.int64)
    order = np.lexsort((codes[1], codes[3], codes[0]))  # stable: the first of equal ratings stays first
    u, i, r, t = (column[order] for column in codes)
    repeated = np.concatenate([[False], (u[1:] == u[:-1]) & (t[1:] == t[:-1]) & (i[1:] == i[:-1])])
    for line in np.array(lines)[order][repeated].tolist():
        rejected.add("the same user, item and time as a rating before", f"line {line}")
    u, i, r, t = (column[~repeated] for column in (u, i, r, t))
    return _Ratings(users, items, u, i, r, t, r >= np.float32(config.like_from))


def _requests(read: _Ratings, schema: Schema, config: RatingsConfig) -> tuple[dict[str, Any], int]:
    """The columns of requests.parquet, and how many items were shown."""
    begins = np.concatenate([[True], (np.diff(read.user) != 0) | (np.diff(read.time_ms) != 0)])
    first = np.flatnonzero(begins)
    request = np.cumsum(begins) - 1
    item, label = read.item, read.liked.astype(np.uint8)
    if config.negatives:
        drawn_request, drawn = _negatives(read, request, config)
        both = np.concatenate([request, drawn_request])
        order = np.lexsort((np.random.default_rng([config.seed, 1]).random(len(both)), both))  # a place tells no label
        item = np.concatenate([item, drawn])[order]
        label = np.concatenate([label, np.zeros(len(drawn), np.uint8)])[order]
        request = both[order]
    offsets = pa.array(np.searchsorted(request, np.arange(len(first) + 1)).astype(np.int32))
    user, time_ms = read.users.texts[read.user[first]], read.time_ms[first]
    ids = pa.array(read.items.texts.tolist(), id_type_of(schema.item.id_type)).take(pa.array(item))
    columns = {
        "request_id": [f"{u}/{t}" for u, t in zip(user, time_ms.tolist(), strict=True)],
        "time_ms": time_ms,
        "user_id": user.tolist(),
        **{f.name: pa.nulls(len(first)) for f in schema.context if f.derived is None},
        "items": pa.ListArray.from_arrays(offsets, ids),
        f"label_{schema.tasks[0].name}": pa.ListArray.from_arrays(offsets, pa.array(label)),
    }
    return columns, len(item)


def _negatives(
    read: _Ratings, request: NDArray[np.int64], config: RatingsConfig
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Requests and items of the sampled negatives: of what was there and the user had not rated, none twice in a request.

    Items are numbered by when they were first rated, so those that were there are the first so many, and the n-th free one
    is found among the user's rated ones without a list of the others. Costs the user's ratings so far per request.
    """
    rng, count = np.random.default_rng(config.seed), len(read.items.numbers)
    began = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(began, read.item, read.time_ms)
    by_begin = np.argsort(began, kind="stable").astype(np.int32)
    place, begins = np.argsort(by_begin), began[by_begin]
    there = np.searchsorted(begins, read.time_ms, side="right")
    requests, items = [], []
    bounds = np.flatnonzero(np.concatenate([[True], np.diff(request) != 0, [True]]))
    rated, user = np.empty(0, np.int64), -1
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if read.user[start] != user:
            rated, user = np.empty(0, np.int64), int(read.user[start])
        rated = np.union1d(rated, place[read.item[start:stop]])
        free, liked = int(there[start]) - len(rated), int(read.liked[start:stop].sum())
        drawn = rng.choice(free, size=min(free, liked * config.negatives), replace=False)
        skipped = np.searchsorted(rated - np.arange(len(rated)), drawn, side="right")
        items.append(by_begin[drawn + skipped])
        requests.append(np.full(len(drawn), request[start]))
    return np.concatenate(requests), np.concatenate(items)


def _events(read: _Ratings, schema: Schema) -> dict[str, Any]:
    """The columns of events.parquet: every rating as an event of each declared type that it has."""
    rows = {e.name: np.flatnonzero(_of_type(e.name, read.liked)) for e in schema.events}
    chosen = np.concatenate(list(rows.values()))
    kinds = [name for name, own in rows.items() for _ in range(len(own))]
    user, item = read.users.texts[read.user[chosen]], read.items.texts[read.item[chosen]].tolist()
    times = read.time_ms[chosen]
    columns: dict[str, Any] = {
        "event_id": [f"{k}/{i}/{t}" for k, i, t in zip(kinds, item, times.tolist(), strict=True)],
        "user_id": user.tolist(),
        "type": kinds,
        "item_id": pa.array(item, id_type_of(schema.item.id_type)),
        "time_ms": times,
        "arrival_ms": times,
    }
    own_type, rating = np.array(kinds), read.rating[chosen]
    for event in schema.events:
        for f in event.attributes:
            is_rating = f.name == RATING and f.kind is FeatureKind.NUMERIC
            columns[f"{event.name}.{f.name}"] = (
                pa.array(rating, mask=own_type != event.name) if is_rating else pa.nulls(len(chosen))
            )
    return columns


def _of_type(name: str, liked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return liked if name == LIKE else ~liked if name == DISLIKE else np.ones(len(liked), bool)
