"""Adapter: Metarank's event log (JSON lines, plain or gzip) → the canonical log.

`item` events become item rows (a later one updates an earlier one), `ranking` events become requests,
their shown items become events of type `impression` (if the schema has it), and an `interaction` sets
the label of the task named like its type and becomes an event of that type. `user` events fill user
features; fields of rankings fill context features. Fields map to features by name; others are counted.

Invariant: a row is taken whole or rejected with a reason and its line number; item order, labels and
event ids depend on the file alone. Cost: one streaming pass; the tables are held in memory.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from model.config import ConfigError
from model.data.canonical import LogFile, entity_columns, write_log
from model.data.rejects import Tally
from model.schema import Feature, FeatureKind, IdType, Schema

IMPRESSION = "impression"


class Rejected(Exception):
    """This row cannot be taken; the text is the reason it is counted under."""


@dataclass
class _Ranking:
    user: str
    time_ms: int
    items: list[Any]
    context: dict[str, Any]
    labels: dict[str, list[int]]


@dataclass
class MetarankReader:
    """Collects rows; `take` one parsed event at a time, then `write`."""

    schema: Schema
    rejected: Tally = field(default_factory=Tally)
    notes: Tally = field(default_factory=Tally)
    items: dict[Any, dict[str, Any]] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    rankings: dict[str, _Ranking] = field(default_factory=dict)
    interactions: dict[str, tuple[str, str, Any, int]] = field(default_factory=dict)

    def take(self, line: bytes, number: int) -> None:
        """Take one line, or count it as rejected."""
        where = f"line {number}"
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise Rejected(f"not a JSON object but a {type(event).__name__}")
            kind = _required(event, "event")
            handlers: dict[Any, Callable[[dict[str, Any], str], None]] = {
                "item": self._item,
                "user": self._user,
                "ranking": self._ranking,
                "interaction": self._interaction,
            }
            if not isinstance(kind, str) or kind not in handlers:
                raise Rejected(f"unknown event kind {kind!r}")
            handlers[kind](event, where)
        except UnicodeDecodeError:
            self.rejected.add("not UTF-8", where)
        except json.JSONDecodeError:
            self.rejected.add("not valid JSON", where)
        except Rejected as reason:
            self.rejected.add(str(reason), where)

    def write(self, directory: Path, source: str) -> dict[str, Any]:
        """Write the canonical log; returns what ``dataset.json`` says."""
        if not self.rankings:
            raise ConfigError(f"{source}: no usable ranking; rejected: {'; '.join(self.rejected.lines()) or 'nothing'}")
        shown = sum(len(r.items) for r in self.rankings.values())
        for request_id, ranking in self.rankings.items():
            for item in ranking.items:
                if item not in self.items:
                    self.notes.add("shown item without an item event (its features are missing)", f"{item} in {request_id}")
        events = self._events()
        info = {
            "source": {"kind": "metarank", "file": source},
            "counts": {
                "requests": len(self.rankings),
                "impressions": shown,
                "users": len({r.user for r in self.rankings.values()} | set(self.users)),
                "items": len(self.items.keys() | {i for r in self.rankings.values() for i in r.items}),
                "events": {e.name: events["type"].count(e.name) for e in self.schema.events},
                "positives": {t.name: sum(sum(r.labels[t.name]) for r in self.rankings.values()) for t in self.schema.tasks},
            },
            "rejected": self.rejected.to_json(),
            "notes": self.notes.to_json(),
        }
        features = [f for f in self.schema.context if f.derived is None]
        rankings = self.rankings.values()
        requests: dict[str, Any] = {
            "request_id": list(self.rankings),
            "time_ms": [r.time_ms for r in rankings],
            "user_id": [r.user for r in rankings],
            **{f.name: [r.context.get(f.name) for r in rankings] for f in features},
            "items": [r.items for r in rankings],
            "positions": [list(range(len(r.items))) for r in rankings],
            **{f"label_{t.name}": [r.labels[t.name] for r in rankings] for t in self.schema.tasks},
        }
        tables = {
            LogFile.REQUESTS: requests,
            LogFile.ITEMS: entity_columns("item_id", self.items, self.schema.item_features),
            LogFile.USERS: entity_columns("user_id", self.users, self.schema.user),
            LogFile.EVENTS: events,
        }
        write_log(directory, self.schema, tables, info)
        return info

    def _item(self, event: dict[str, Any], where: str) -> None:
        values = self._features(event, self.schema.item_features, "item", where)
        self.items.setdefault(self._item_id(_required(event, "item")), {}).update(values)

    def _user(self, event: dict[str, Any], where: str) -> None:
        values = self._features(event, self.schema.user, "user", where)
        self.users.setdefault(_text(event, "user"), {}).update(values)

    def _ranking(self, event: dict[str, Any], where: str) -> None:
        request_id, user, time_ms = _text(event, "id"), _text(event, "user"), _time(event)
        shown = _required(event, "items")
        if request_id in self.rankings:
            raise Rejected("ranking with an id that was used before")
        if not isinstance(shown, list) or not shown:
            raise Rejected("ranking without items")
        items = [self._item_id(_required(i, "id") if isinstance(i, dict) else i) for i in shown]
        if len(set(items)) < len(items):
            raise Rejected("ranking that shows an item twice")
        stored = tuple(f for f in self.schema.context if f.derived is None)
        context = self._features(event, stored, "ranking", where)
        labels = {t.name: [0] * len(items) for t in self.schema.tasks}
        self.rankings[request_id] = _Ranking(user, time_ms, items, context, labels)

    def _interaction(self, event: dict[str, Any], where: str) -> None:
        kind, item, time_ms = _text(event, "type"), self._item_id(_required(event, "item")), _time(event)
        types = {e.name for e in self.schema.events} | {t.name for t in self.schema.tasks}
        if kind not in types or kind == IMPRESSION:
            raise Rejected(f"interaction of type {kind!r}, which the schema does not declare")
        ranking = self.rankings.get(str(event["ranking"])) if event.get("ranking") is not None else None
        if event.get("ranking") is not None:
            if ranking is None:
                raise Rejected("interaction for a ranking that was not seen")
            if item not in ranking.items:
                raise Rejected("interaction with an item that its ranking did not show")
        user = ranking.user if ranking is not None else _text(event, "user")
        event_id = str(event.get("id") or f"{event.get('ranking')}/{kind}/{item}/{time_ms}")
        if event_id in self.interactions:
            raise Rejected("interaction with an id that was used before")
        if ranking is not None and kind in ranking.labels:
            ranking.labels[kind][ranking.items.index(item)] = 1
        if kind in {e.name for e in self.schema.events}:
            self.interactions[event_id] = (user, kind, item, time_ms)

    def _events(self) -> dict[str, list[Any]]:
        """Interactions and impressions as columns.

        This format knows no attributes of events: one that is called like an item feature, and of its kind and id type, is
        taken from the item; others stay missing.
        """
        rows = [(event_id, *rest) for event_id, rest in self.interactions.items()]
        if IMPRESSION in {e.name for e in self.schema.events}:
            rows += [
                (f"{request_id}/{position}", r.user, IMPRESSION, item, r.time_ms)
                for request_id, r in self.rankings.items()
                for position, item in enumerate(r.items)
            ]
        names = ("event_id", "user_id", "type", "item_id", "time_ms")
        columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        columns["arrival_ms"] = columns["time_ms"]
        known = {(f.name, f.kind, f.id_type) for f in self.schema.item_features}
        for event in self.schema.events:
            for f in event.attributes:
                is_of_item = (f.name, f.kind, f.id_type) in known
                columns[f"{event.name}.{f.name}"] = [
                    self._of_item(item, f) if is_of_item and kind == event.name else None
                    for kind, item in zip(columns["type"], columns["item_id"], strict=True)
                ]
        return columns

    def _of_item(self, item: Any, attribute: Feature) -> Any:
        """What an item says of an attribute, cut to the values that the attribute may have."""
        value = self.items.get(item, {}).get(attribute.name)
        return value[: attribute.max_values] if isinstance(value, list) else value

    def _item_id(self, value: Any) -> Any:
        if self.schema.item.id_type is IdType.STRING:
            return str(value)
        try:
            return _integer(value)
        except (TypeError, ValueError, OverflowError):
            raise Rejected("item id that is not an integer, as the schema declares") from None

    def _features(self, event: dict[str, Any], features: tuple[Feature, ...], owner: str, where: str) -> dict[str, Any]:
        """Values of declared features among the event's fields; the others are noted."""
        declared = {f.name: f for f in features}
        values: dict[str, Any] = {}
        fields = event.get("fields") or []
        if not isinstance(fields, list) or not all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in fields):
            raise Rejected("`fields` is not a list of {name, value}")
        for entry in fields:
            name = entry["name"]
            if name not in declared:
                self.notes.add(f"{owner} field {name!r}, which the schema does not declare", where)
            else:
                values[name] = _value(declared[name], entry.get("value"), f"{owner} field {name!r}")
        return values


def convert_metarank(
    source: Path, directory: Path, schema: Schema, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Convert the file `source`; `progress` is told compressed bytes read so far and in all. Returns ``dataset.json``."""
    reader = MetarankReader(schema)
    total = 0
    try:
        total = source.stat().st_size
        with source.open("rb") as raw:
            for number, line in enumerate(_lines(raw), start=1):
                if line.strip():
                    reader.take(line, number)
                if number % 500 == 0:
                    progress(raw.tell(), total)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from error
    progress(total, total)
    return reader.write(directory, source.name)


def _lines(raw: IO[bytes]) -> Iterator[bytes]:
    """Lines of a plain or gzip file, told apart by the first bytes."""
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    yield from gzip.GzipFile(fileobj=raw) if zipped else raw


def _required(event: dict[str, Any], name: str) -> Any:
    if event.get(name) is None:
        raise Rejected(f"{event.get('event', 'event')} without {name!r}")
    return event[name]


def _text(event: dict[str, Any], name: str) -> str:
    return str(_required(event, name))


def _time(event: dict[str, Any]) -> int:
    """Milliseconds; Metarank writes them as a string."""
    value = _required(event, "timestamp")
    try:
        time_ms = int(value)
    except (TypeError, ValueError, OverflowError):
        time_ms = -1
    if not 0 <= time_ms < 1 << 62:
        raise Rejected(f"{event['event']} with a timestamp that is not in milliseconds since the epoch")
    return time_ms


def _value(feature: Feature, value: Any, where: str) -> Any:
    """A field's value in the feature's type; a list longer than the feature allows is cut."""
    if value is None:
        return None
    if feature.kind is FeatureKind.MULTI:
        entries = value if isinstance(value, list) else [value]
        return [_identity(feature, entry, where) for entry in entries if entry is not None][: feature.max_values]
    if feature.kind is FeatureKind.CATEGORICAL:
        if isinstance(value, list):
            value = value[0] if value else None
        return None if value is None else _identity(feature, value, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Rejected(f"{where}: expected a finite number, found {type(value).__name__}")
    return float(value)


def _identity(feature: Feature, value: Any, where: str) -> Any:
    if feature.id_type is IdType.INT64:
        try:
            return _integer(value)
        except (TypeError, ValueError, OverflowError):
            raise Rejected(f"{where}: expected an integer, found {type(value).__name__}") from None
    if isinstance(value, list | dict):
        raise Rejected(f"{where}: expected text, found {type(value).__name__}")
    return str(value)


def _integer(value: Any) -> int:
    """An int64 id from a number or its text (10, 10.0, "10"); raises `ValueError` and its kin."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    number = int(value)
    if not -(1 << 63) < number < 1 << 63:
        raise ValueError(value)
    return number
