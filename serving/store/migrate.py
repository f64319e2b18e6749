"""Moves what is stored under the record layouts of one schema to those of another, beside live servers of both.

A layout is part of every key (`serving.store.keys`), so servers of the new schema find nothing that those of the old
one have stored. `migrate` reads every record of the old layouts, carries over the features that both schemas have
(the others are missing), and

* merges histories: events of the old layout that the new one does not hold are put where they arrived. A history is
  replaced in one atomic step, and only if nothing has been stored for the user since it was read;
* keeps user and item records that the new layout has already: those are newer.

Running it again changes nothing but what has come since. So run it before traffic moves to the new schema, and again
(with `delete_old`, if going back is not wanted) when the last server of the old one has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.config import ConfigError
from model.records import ARRIVAL_MS, ITEM, TIME_MS, Records, event_dtype, feature_dtype, missing_records
from model.schema import EventType, Feature, FeatureKind, IdType, Schema
from serving.core.errors import StoreUnavailable
from serving.store.keys import StoreKeys, version_key
from serving.store.nodes import Command
from serving.store.redis_store import RedisStore, records_of_bytes
from serving.store.scripts import REPLACE_HISTORY

SCAN_KEYS = 1000
"""Keys of the store that one step looks at."""

EXCHANGE_KEYS = 50
ATTEMPTS = 20
"""Users are read again and again while their apps write; nobody writes so fast as to fail this often."""

Report = Callable[[int], None]


@dataclass
class MigrationReport:
    """What was carried over; `users`, `items` and `histories` count records that were written."""

    histories: int = 0
    users: int = 0
    items: int = 0
    unreadable: int = 0
    left_out: list[str] = field(default_factory=list)
    """Features that the old schema has and the new one has not, or not with the same kind and ids."""


@dataclass(frozen=True)
class _HistoryMove:
    """From which key of a user to which, the records of both, how many are `kept`, and the attributes they share."""

    source: str
    target: str
    old_dtype: np.dtype[np.void]
    dtype: np.dtype[np.void]
    kept: int
    shared: Sequence[str]


@dataclass(frozen=True)
class _RecordMove:
    """How the keys of feature records begin, before and after, and the features in them."""

    source: str
    target: str
    before: Sequence[Feature]
    after: Sequence[Feature]


class Migration:
    """From the layouts of `old` to those of `store`'s own schema. Raises `ConfigError` when items are not the same."""

    def __init__(self, store: RedisStore, old: Schema, *, delete_old: bool = False) -> None:
        self._store, self._new, self._old, self._delete_old = store, store.schema, old, delete_old
        self._old_keys = StoreKeys(old, store.options.prefix)
        self.report = MigrationReport()
        if not self._same_ids(old.item.id_type, self._new.item.id_type):
            raise ConfigError(
                f"item.id_type: expected {self._new.item.id_type.value} ids hashed alike in both schemas, found "
                f"{old.item.id_type.value}: records hold keys that cannot be converted; load the log again"
            )

    async def run(self, progress: Report = lambda _: None) -> MigrationReport:
        """All of it; `progress` is told how many keys of the store have been looked at."""
        old_events = {event.name: event for event in self._old.events}
        for event in self._new.events:
            if (before := old_events.get(event.name)) is not None:
                await self._histories(before, event, progress)
        users = _RecordMove(self._old_keys.users, self._store.keys.users, self._old.user, self._new.user)
        items = _RecordMove(self._old_keys.items, self._store.keys.items, self._old.item_features, self._new.item_features)
        self.report.users += await self._records("user", users, progress)
        self.report.items += await self._records("item_features", items, progress)
        return self.report

    @property
    def passes(self) -> int:
        """How many times `run` goes through all keys of the store."""
        keys, old = self._store.keys, self._old_keys
        names = {e.name for e in self._old.events} & {e.name for e in self._new.events}
        layouts = [(old.history("", name), keys.history("", name)) for name in names]
        return sum(a != b for a, b in [*layouts, (old.users, keys.users), (old.items, keys.items)])

    async def _histories(self, before: EventType, after: EventType, progress: Report) -> None:
        source, target = self._old_keys.history("", before.name), self._store.keys.history("", after.name)
        if source == target:
            return
        shared = self._shared(f"events.{after.name}", before.attributes, after.attributes)
        move = _HistoryMove(source, target, event_dtype(before), event_dtype(after), after.stored, shared)
        async for names in self._store.nodes.scan(f"{self._store.keys.prefix}:*:{source}", SCAN_KEYS):
            tags = [name.decode().removesuffix(source) for name in names]
            for left in _parts(tags):
                for _ in range(ATTEMPTS):
                    left = await self._merge(left, move)
                    if not left:
                        break
                else:
                    raise StoreUnavailable(f"store: migrate: {len(left)} user(s) were written to {ATTEMPTS} times meanwhile")
            progress(SCAN_KEYS)

    async def _merge(self, tags: Sequence[str], move: _HistoryMove) -> Sequence[str]:
        """Merge these users' histories; returns those that were written to meanwhile."""
        commands: list[Command] = []
        for tag in tags:
            commands += [("GET", version_key(tag)), ("GET", tag + move.source), ("GET", tag + move.target)]
        replies = await self._store.execute(commands, "migrate")
        users, calls, changes = [], [], []
        for at, tag in enumerate(tags):
            version, found, present = replies[3 * at : 3 * at + 3]
            if found is None:
                continue
            old, new = records_of_bytes(found, move.old_dtype), records_of_bytes(present or b"", move.dtype)
            if old is None or new is None:
                self.report.unreadable += 1
                continue
            converted = converted_records(old, move.dtype, (ITEM, TIME_MS, ARRIVAL_MS, *move.shared))
            merged = merge_histories(converted, new, move.kept, move.shared).tobytes()
            if merged != new.tobytes() or self._delete_old:
                users.append(tag)
                changes.append(merged != new.tobytes())
                keys = [version_key(tag), tag + move.target, tag + move.source]
                calls.append((keys, [version or b"", merged, int(self._delete_old)]))
        done = await self._store.run_script(REPLACE_HISTORY, calls, "migrate") if calls else []
        self.report.histories += sum(change for change, one in zip(changes, done, strict=True) if one)
        return [tag for tag, one in zip(users, done, strict=True) if not one]

    async def _records(self, where: str, move: _RecordMove, progress: Report) -> int:
        """Convert feature records; returns how many were written."""
        if move.source == move.target:
            return 0
        shared, written = self._shared(where, move.before, move.after), 0
        old_dtype, dtype = feature_dtype(move.before), feature_dtype(move.after)
        if not old_dtype.itemsize or not dtype.itemsize:
            return 0
        async for names in self._store.nodes.scan(f"{move.source}*", SCAN_KEYS):
            for keys in _parts([name.decode() for name in names]):
                found = await self._store.execute([("GET", key) for key in keys], "migrate")
                given = {key: value for key, value in zip(keys, found, strict=True) if value is not None}
                fitting = {key: v for key, v in given.items() if isinstance(v, bytes) and len(v) == old_dtype.itemsize}
                self.report.unreadable += len(given) - len(fitting)
                if not fitting:
                    continue
                records = converted_records(np.frombuffer(b"".join(fitting.values()), old_dtype), dtype, shared)
                targets = (move.target + key.removeprefix(move.source) for key in fitting)
                sets = [("SET", name, record.tobytes(), "NX") for name, record in zip(targets, records, strict=True)]
                written += sum(reply is not None for reply in await self._store.execute(sets, "migrate"))
                if self._delete_old:
                    await self._store.execute([("UNLINK", key) for key in fitting], "migrate")
            progress(SCAN_KEYS)
        return written

    def _shared(self, where: str, before: Sequence[Feature], after: Sequence[Feature]) -> list[str]:
        """Features that can be carried over; notes those that cannot."""
        stored = {feature.name: feature for feature in after if feature.derived is None}
        shared = []
        for feature in (f for f in before if f.derived is None):
            if feature.name in stored and self._same_values(feature, stored[feature.name]):
                shared.append(feature.name)
            else:
                self.report.left_out.append(f"{where}.{feature.name}")
        return shared

    def _same_values(self, before: Feature, after: Feature) -> bool:
        if before.kind is not after.kind:
            return False
        return before.kind is FeatureKind.NUMERIC or self._same_ids(before.id_type, after.id_type)

    def _same_ids(self, before: IdType, after: IdType) -> bool:
        return before == after and (before is not IdType.STRING or self._old.hash == self._new.hash)


def converted_records(records: Records, dtype: np.dtype[np.void], shared: Sequence[str]) -> Records:
    """Records [N] with the `shared` fields of `records`, everything else missing; of several values as many as fit."""
    converted = missing_records(dtype, len(records))
    for name in shared:
        values = records[name]
        if values.ndim == 2:
            width = min(values.shape[1], converted[name].shape[1])
            converted[name][:, :width] = values[:, :width]
        else:
            converted[name] = values
    return converted


def merge_histories(old: Records, new: Records, kept: int, shared: Sequence[str]) -> Records:
    """The newest `kept` events of both in order of arrival.

    An event of `old` that is in `new` is not repeated, whenever it arrived; `shared`: the attributes to tell by.
    """
    known = set(_identities(new, shared))
    missing = np.array([identity not in known for identity in _identities(old, shared)], bool)
    both = np.concatenate([old[missing], new])
    return both[np.argsort(both[ARRIVAL_MS], kind="stable")][-kept:]


def _identities(records: Records, shared: Sequence[str]) -> list[bytes]:
    """The bytes of what an event is: its item, its time and the `shared` attributes."""
    packed = np.empty(len(records), [(name, records.dtype[name]) for name in (ITEM, TIME_MS, *shared)])
    for name in packed.dtype.names or ():
        packed[name] = records[name]
    found: list[bytes] = packed.view(f"V{packed.dtype.itemsize}").tolist()
    return found


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), EXCHANGE_KEYS):
        yield names[start : start + EXCHANGE_KEYS]
