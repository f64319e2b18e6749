"""Joins served lists with what was reported of them, into the tables of a canonical log.

Fed by `serving.training_log.export`: first every outcome, then every entry of the served log, both in any order and
repeated at will. An example is a shown position of a list, with label 1 for every task that was reported of it.

Histories are shared in a canonical log: what a request sees follows from its user's events and `model.history`. So the
events are the union of those in the served histories, and every list is then checked: one whose histories would not
come out as they were served is left out. An event that a list saw although it arrived later (the caller's clock, or a read
just after the request) arrives just before that list instead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from model.data.canonical import LogFile
from model.data.record_columns import columns_of_records, lists_of
from model.history import arrived_before, visible_history
from model.records import ARRIVAL_MS, ITEM, TIME_MS, Records, event_dtype, feature_dtype
from model.schema import Schema
from serving.feedback.outcome import decode_outcome
from serving.store.keys import user_hash
from serving.training_log.served_log import OtherLayout, ServedEntry, ServedLogFormat


class Reason:
    """Why a served list is not in the log."""

    NO_IMPRESSIONS = "no_impressions"
    IMMATURE = "immature"
    EXPIRED = "expired"
    OTHER_SCHEMA = "other_schema"
    UNDECODABLE = "undecodable"
    REPEATED = "repeated"
    FORGOTTEN = "forgotten"
    OUTCOMES_TRIMMED = "outcomes_trimmed"
    HISTORIES = "histories"
    SAMPLED_AWAY = "sampled_away"


REASON_TEXT = {
    Reason.NO_IMPRESSIONS: "nothing was reported as shown",
    Reason.IMMATURE: "the attribution window has not ended",
    Reason.EXPIRED: "shown, but reported after the attribution window",
    Reason.OTHER_SCHEMA: "of another schema",
    Reason.UNDECODABLE: "no entry of the served log",
    Reason.REPEATED: "logged twice",
    Reason.FORGOTTEN: "the user has been forgotten",
    Reason.OUTCOMES_TRIMMED: "older than the oldest outcome that the store still has",
    Reason.HISTORIES: "histories that would not come out as they were served",
    Reason.SAMPLED_AWAY: "no example was left by the sampling of negatives",
}


@dataclass(frozen=True)
class ExportOptions:
    """`since_ms` (inclusive) and `until_ms` (exclusive) bound the serving time, ms since the epoch.

    Outcomes count up to `window_ms` after the receipt was issued. Lists whose window has not ended at `now_ms` are left out
    unless `include_immature`. `negative_rate`: share of the shown items without any label that is kept. `forgotten`: users
    (by `user_hash`) to leave out. `outcomes_from_ms`: outcomes before this time are lost (0: none is).
    """

    window_ms: int
    now_ms: int
    since_ms: int | None = None
    until_ms: int | None = None
    include_immature: bool = False
    negative_rate: float = 1.0
    forgotten: Set[str] = frozenset()
    outcomes_from_ms: int = 0

    def covers(self, time_ms: int) -> bool:
        """Whether lists of this serving time are wanted."""
        is_early = self.since_ms is not None and time_ms < self.since_ms
        return not is_early and (self.until_ms is None or time_ms < self.until_ms)


@dataclass
class ExportReport:
    """What became of every served list in the time span, and what else is worth knowing."""

    served: int = 0
    with_impressions: int = 0
    exported: int = 0
    impressions: int = 0
    examples: int = 0
    positives: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    changed_features: dict[str, int] = field(default_factory=dict)
    moved_arrivals: int = 0
    labels_not_shown: int = 0
    undecodable_outcomes: int = 0
    users: int = 0
    items: int = 0
    events: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}


@dataclass
class _Reported:
    """Bit p: position p was shown; per task number: was labelled. `is_late`: something came after the window."""

    shown: int = 0
    labels: dict[int, int] = field(default_factory=dict)
    is_late: bool = False


@dataclass(frozen=True)
class _List:
    """One list to export: its n examples, and the events its request saw, by their number among the user's.

    Of the entry the histories are left out, and all items but those of the examples.
    """

    entry: ServedEntry
    positions: NDArray[np.int32]
    labels: NDArray[np.uint8]  # [n, tasks]
    seen: Mapping[str, NDArray[np.int64]]


class _Events:
    """A user's events of one type, numbered as they are met; equal ones are told apart within one history alone."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.raw: list[bytes] = []

    def numbers(self, history: Records) -> NDArray[np.int64]:
        """The numbers [T] of a history's events."""
        width, data = history.dtype.itemsize, history.tobytes()
        met: Counter[bytes] = Counter()
        found = np.empty(len(history), np.int64)
        for at in range(len(history)):
            raw = data[at * width : (at + 1) * width]
            key = raw + met[raw].to_bytes(4, "little") if raw in met else raw
            met[raw] += 1
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self.raw)
                self.raw.append(raw)
            found[at] = number
        return found


class _Newest:
    """The newest record of every id, and which ids had more than one."""

    def __init__(self) -> None:
        self._newest: dict[Any, tuple[int, bytes]] = {}
        self.changed: set[Any] = set()

    def add(self, identity: Any, at_ms: int, raw: bytes) -> None:
        known = self._newest.get(identity)
        if known is not None and known[1] != raw:
            self.changed.add(identity)
        if known is None or at_ms >= known[0]:
            self._newest[identity] = at_ms, raw

    def ids(self) -> list[Any]:
        return list(self._newest)

    def records(self, dtype: np.dtype[np.void]) -> Records:
        return _records([raw for _, raw in self._newest.values()], dtype)


class TrainingLog:
    """Collects outcomes and entries of one schema; `tables` then is a canonical log, and `report` says what is in it."""

    def __init__(self, schema: Schema, options: ExportOptions) -> None:
        self._schema, self._options, self._format = schema, options, ServedLogFormat(schema)
        self._tasks = [task.name for task in schema.tasks]
        self._reported: defaultdict[bytes, _Reported] = defaultdict(_Reported)
        self._met: set[bytes] = set()
        self._lists: list[_List] = []
        self._events: defaultdict[tuple[str, str], _Events] = defaultdict(_Events)
        self._users, self._items = _Newest(), _Newest()
        self.report = ExportReport()

    def add_outcome(self, data: bytes) -> None:
        """One entry of the outcome stream."""
        try:
            outcome = decode_outcome(data)
        except ValueError:
            self.report.undecodable_outcomes += 1
            return
        reported = self._reported[outcome.identity]
        if outcome.reported_ms - outcome.served.issued_ms > self._options.window_ms:
            reported.is_late = True
            return
        for position in outcome.shown:
            reported.shown |= 1 << position
        for position, task in outcome.labels:
            if task >= len(self._tasks):
                continue  # of a list of another schema, which is left out
            reported.labels[task] = reported.labels.get(task, 0) | 1 << position

    def read_entry(self, data: bytes) -> ServedEntry | None:
        """An entry of the served log that is wanted, to be given to `add`; what cannot be read is counted."""
        try:
            entry = self._format.decode(data)
        except OtherLayout:
            self._leave_out(Reason.OTHER_SCHEMA)
            return None
        except ValueError:
            self._leave_out(Reason.UNDECODABLE)
            return None
        return entry if self._options.covers(entry.received_ms) else None

    def add(self, entry: ServedEntry, *, is_noted: bool = True) -> None:
        """One list. `is_noted`: under its user's own keys, which a deletion of the user takes away."""
        if (reason := self._objection(entry, is_noted)) is not None:
            self._leave_out(reason)
            return
        self.report.served += 1
        reported, tasks = self._reported[entry.identity], len(self._tasks)
        self.report.with_impressions += 1
        shown = _positions(reported.shown, len(entry.item_keys))
        labels = np.zeros((len(entry.item_keys), tasks), np.uint8)
        for task, mask in reported.labels.items():
            labels[_positions(mask, len(labels)), task] = 1
        self.report.impressions += len(shown)
        self.report.labels_not_shown += int(labels.sum() - labels[shown].sum())
        kept = shown[labels[shown].any(axis=1) | self._keeps_negatives(entry, shown)]
        if not len(kept):
            self.report.left_out[Reason.SAMPLED_AWAY] += 1
            return
        seen = {name: self._events[entry.user_id, name].numbers(history) for name, history in entry.histories.items()}
        examples = replace(
            entry,
            context=entry.context.copy(),  # the entry's arrays are views of all its bytes
            user=entry.user.copy(),
            item_keys=entry.item_keys[kept],
            items=entry.items[kept],
            columns={name: column[kept] for name, column in entry.columns.items()},
            histories={},
        )
        self._lists.append(_List(examples, kept.astype(np.int32), labels[kept], seen))

    def _leave_out(self, reason: str) -> None:
        self.report.served += 1
        self.report.left_out[reason] += 1

    def _objection(self, entry: ServedEntry, is_noted: bool) -> str | None:
        """Why a list is not exported, as far as it follows from the list and its outcomes alone."""
        options = self._options
        if entry.identity in self._met:
            return Reason.REPEATED
        self._met.add(entry.identity)
        if not is_noted or user_hash(entry.user_id) in options.forgotten:
            return Reason.FORGOTTEN
        if entry.issued_ms < options.outcomes_from_ms:
            return Reason.OUTCOMES_TRIMMED
        if options.now_ms - entry.issued_ms <= options.window_ms and not options.include_immature:
            return Reason.IMMATURE
        reported = self._reported.get(entry.identity)
        if reported is None or not reported.shown:
            return Reason.EXPIRED if reported is not None and reported.is_late else Reason.NO_IMPRESSIONS
        return None

    def _keeps_negatives(self, entry: ServedEntry, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the positions are kept without a label: a function of list and item alone."""
        rate = self._options.negative_rate
        if rate >= 1:
            return np.ones(len(positions), bool)
        below, identity = round(rate * 2**64), entry.identity
        keys = entry.item_keys[positions]
        return np.array([xxhash.xxh64_intdigest(identity + key.tobytes()) < below for key in keys], bool)

    def tables(self) -> dict[LogFile, dict[str, Any]]:
        """The columns of every file, none when there is no list to export; completes the report."""
        events = self._event_table()
        if not self._lists:
            return {}
        lists = sorted(self._lists, key=lambda one: one.entry.received_ms)
        for one in lists:
            entry, at_ms = one.entry, one.entry.received_ms
            if entry.has_user:
                self._users.add(entry.user_id, at_ms, entry.user.tobytes())
            for number, key in enumerate(entry.item_keys.tolist()):
                self._items.add(key, at_ms, entry.items[number : number + 1].tobytes())
        self._complete_report(lists)
        users = self._users.records(feature_dtype(self._schema.user))
        items = self._items.records(feature_dtype(self._schema.item_features))
        return {
            LogFile.REQUESTS: self._request_table(lists),
            LogFile.ITEMS: {
                "item_id": np.array(self._items.ids(), np.int64),
                **columns_of_records(items, self._schema.item_features),
            },
            LogFile.USERS: {"user_id": self._users.ids(), **columns_of_records(users, self._schema.user)},
            LogFile.EVENTS: events,
        }

    def _complete_report(self, lists: list[_List]) -> None:
        report = self.report
        report.exported, report.examples = len(lists), sum(len(one.positions) for one in lists)
        report.users, report.items = len({one.entry.user_id for one in lists}), len(self._items.ids())
        report.changed_features = {"items": len(self._items.changed), "users": len(self._users.changed)}
        for one in lists:
            report.versions[one.entry.model_version] += 1
            for name, count in zip(self._tasks, one.labels.sum(axis=0, dtype=np.int64).tolist(), strict=True):
                report.positives[name] += count

    def _request_table(self, lists: list[_List]) -> dict[str, Any]:
        lengths = np.array([len(one.positions) for one in lists], np.int64)
        entries = [one.entry for one in lists]
        contexts = _records([entry.context.tobytes() for entry in entries], feature_dtype(self._schema.context))
        labels = np.concatenate([one.labels for one in lists])
        table: dict[str, Any] = {
            "request_id": _distinct(entries),
            "time_ms": np.array([entry.received_ms for entry in entries], np.int64),
            "user_id": [entry.user_id for entry in entries],
            **columns_of_records(contexts, self._schema.context),
            "items": lists_of(np.concatenate([entry.item_keys for entry in entries]), lengths),
            "positions": lists_of(np.concatenate([one.positions for one in lists]), lengths),
        }
        table |= {f"label_{name}": lists_of(labels[:, task], lengths) for task, name in enumerate(self._tasks)}
        for name in self._schema.request_columns:
            values = np.concatenate([entry.columns[name] for entry in entries])
            flat = pa.array(values, mask=np.isnan(values))
            table[f"column_{name}"] = pa.ListArray.from_arrays(table["items"].offsets, flat)
        return table

    def _event_table(self) -> dict[str, Any]:
        """Every user's events; lists whose histories do not follow from them are left out."""
        by_user: defaultdict[str, list[_List]] = defaultdict(list)
        for one in self._lists:
            by_user[one.entry.user_id].append(one)
        parts: dict[str, list[tuple[str, Records]]] = {event.name: [] for event in self._schema.events}
        broken: set[int] = set()
        for user, own in by_user.items():
            own.sort(key=lambda one: one.entry.received_ms)
            for event in self._schema.events:
                records, place = self._arrivals(user, event.name, own)
                parts[event.name].append((user, records))
                for one in own:
                    now = one.entry.received_ms
                    rebuilt = visible_history(arrived_before(records, now), event, now)
                    if rebuilt.tobytes() != records[place[one.seen[event.name]]].tobytes():
                        broken.add(id(one))
        if broken:
            self.report.left_out[Reason.HISTORIES] = len(broken)
        self._lists = [one for one in self._lists if id(one) not in broken]
        kept = {one.entry.user_id for one in self._lists}
        return self._event_columns({name: [part for part in own if part[0] in kept] for name, own in parts.items()})

    def _arrivals(self, user: str, event: str, lists: list[_List]) -> tuple[Records, NDArray[np.int64]]:
        """A user's events in arrival order, and where each number is among them. Lists in time order.

        Those that arrived together stay in the order in which the lists had them.
        """
        records = _records(self._events[user, event].raw, event_dtype(self._schema.event(event)))
        seen = [one.seen[event] for one in lists]
        numbers = np.concatenate(seen)
        before = np.repeat([one.entry.received_ms - 1 for one in lists], list(map(len, seen)))
        arrival = records[ARRIVAL_MS].copy()
        np.minimum.at(arrival, numbers, before)
        self.report.moved_arrivals += int((arrival != records[ARRIVAL_MS]).sum())
        records[ARRIVAL_MS] = arrival
        _, first_met = np.unique(numbers, return_index=True)  # every number is in some list
        order = np.lexsort((first_met, arrival))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return records[order], place

    def _event_columns(self, parts: Mapping[str, list[tuple[str, Records]]]) -> dict[str, Any]:
        names = [event.name for event in self._schema.events]
        whole = {
            event.name: np.concatenate([np.empty(0, event_dtype(event)), *(records for _, records in parts[event.name])])
            for event in self._schema.events
        }
        self.report.events = {name: len(whole[name]) for name in names}
        table: dict[str, Any] = {
            "event_id": [f"{name}/{n}" for name in names for _, own in parts[name] for n in range(len(own))],
            "user_id": [user for name in names for user, own in parts[name] for _ in range(len(own))],
            "type": [name for name in names for _ in range(len(whole[name]))],
        }
        for column, of_record in (("item_id", ITEM), ("time_ms", TIME_MS), ("arrival_ms", ARRIVAL_MS)):
            table[column] = np.concatenate([whole[name][of_record] for name in names])
        for event in self._schema.events:
            for column, values in columns_of_records(whole[event.name], event.attributes, f"{event.name}.").items():
                around = [values if name == event.name else pa.nulls(len(whole[name]), values.type) for name in names]
                table[column] = pa.concat_arrays(around)
        return table


def _positions(mask: int, count: int) -> NDArray[np.int64]:
    """The set bits of `mask` below `count`, ascending."""
    data = np.frombuffer(mask.to_bytes(max(1, (mask.bit_length() + 7) // 8), "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(data, bitorder="little")[:count])


def _records(raw: list[bytes], dtype: np.dtype[np.void]) -> Records:
    """Records [N] of their bytes, the caller's to change."""
    return np.frombuffer(b"".join(raw), dtype).copy() if dtype.itemsize and raw else np.zeros(len(raw), dtype)


def _distinct(entries: list[ServedEntry]) -> list[str]:
    """Request ids; one that callers have used again is told apart by its receipt."""
    met: set[str] = set()
    names = []
    for entry in entries:
        name = entry.request_id if entry.request_id not in met else f"{entry.request_id}~{entry.identity.hex()}"
        met.add(name)
        names.append(name)
    return names
