"""What one Rank reads: features through the near caches, the rest in one store round trip.

Items that have outlived their time in the cache are served once more and read again in the background.
Whatever is read, cold or again, is read once however many Ranks ask for it meanwhile.

Owns the read budget (a share of the remaining deadline) and a circuit breaker: when a few reads in a
row failed and the store has been silent for a whole `store_timeout_s`, requests go on without it at
once, and one read in a while probes it. Callers in a hurry alone do not open it: the store answers others.
A failed read is an answer too (`UserView.fault`): the ranker degrades, it does not fail.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.history import newest_event_ms, visible_history
from model.records import Records, event_dtype, feature_dtype, missing_records, missing_values
from serving.core.errors import StoreUnavailable
from serving.core.host_features import HostFeatures, ItemRows
from serving.core.item_reads import ItemRead, ItemReads
from serving.core.observer import Observer
from serving.core.options import CoreOptions
from serving.core.types import Overrides
from serving.core.user_features import UserFeatureCache, UserFeatures
from serving.store.base import FeatureStore, RankInputs
from serving.store.near_cache import NearCache

_NO_ITEMS = np.empty(0, np.int64)
REREAD_PAUSE_S = 0.005
REFRESH_ITEMS = 500


@dataclass(frozen=True)
class UserView:
    """One user as of now: features [1], selected histories per event type, and what could not be read (`fault`).

    `is_partial`: somebody has cut the histories since.
    """

    user: Records
    has_features: bool
    histories: Mapping[str, Records]
    newest_ms: int | None
    history_version: int
    fault: str = ""
    is_partial: bool = False

    @property
    def lengths(self) -> dict[str, int]:
        return {event: len(history) for event, history in self.histories.items()}

    @property
    def history_length(self) -> int:
        return sum(map(len, self.histories.values()))


class FeatureReader:
    """Reads features and histories for the ranker."""

    def __init__(self, host: HostFeatures, store: FeatureStore, options: CoreOptions, observer: Observer) -> None:
        self._host, self._store, self._options, self._observer = host, store, options, observer
        self._schema = schema = host.schema
        self._item_dtype, self._user_dtype = feature_dtype(schema.item_features), feature_dtype(schema.user)
        self._near = NearCache(host.item_dtype, int(options.item_cache_mb * 1e6), options.item_ttl_s, options.item_stale_s)
        self._users = UserFeatureCache(self._user_dtype, int(options.user_cache_mb * 1e6), options.user_ttl_s)
        self._reads = ItemReads()
        self._stale: set[int] = set()  # to be read again
        self._refresh: asyncio.Task[None] | None = None
        self._failures = 0  # in a row
        self._silent_since = 0.0  # when the first of them began, or the last answer came
        self._answered = 0.0
        self._skip_until = 0.0  # 0: the breaker is closed

    async def read(
        self, user_id: str, item_keys: NDArray[np.int64], now_ms: int, deadline: float, min_version: int = 0
    ) -> tuple[UserView, ItemRows]:
        """The user's view and the rows of `item_keys` [C]; waits briefly for `min_version`."""
        user, mark = self._users.lookup(user_id), self._users.mark()
        self._observer.user_features(user is not None)
        items, is_absent, stale = self._near.lookup(item_keys)
        absent = np.flatnonzero(is_absent)
        self._observer.item_cache(len(item_keys) - len(absent), len(absent))
        if stale.any():
            self._read_again(item_keys[stale])
        if len(absent):
            inputs, items[absent] = await self._read_missing(user_id, item_keys[absent], deadline, user is None)
        else:
            inputs = await self._round_trip(user_id, _NO_ITEMS, deadline, user is None)
        if isinstance(inputs, str):
            return self._unread(user or self._users.last_known(user_id), inputs), items
        user = user or self._users.insert(user_id, inputs.user, mark)
        return self._view(user, await self._up_to(min_version, user_id, inputs, deadline), now_ms), items

    async def _read_missing(
        self, user_id: str, keys: NDArray[np.int64], deadline: float, with_user: bool
    ) -> tuple[RankInputs | str, ItemRows]:
        """The user's inputs, and the rows of items that are not cached [N]: read with them, or by other Ranks meanwhile."""
        claim, mark, own = self._reads.claim(keys), self._near.mark(), None
        try:
            inputs = await self._round_trip(user_id, claim.own.keys, deadline, with_user)
            if not isinstance(inputs, str):
                own = self._encode(claim.own.keys, inputs.items)
                self._near.insert(claim.own.keys, own, mark)
        finally:
            self._reads.land(claim.own, own)
        if own is None:
            return inputs, self._last_known(keys)
        rows = np.empty(len(keys), own.dtype)
        rows[claim.own_positions] = own
        for read, pairs in claim.others.items():
            asked, there = np.array(pairs).T
            rows[asked] = await self._read_by_another(read, there, keys[asked], deadline)
        return inputs, rows

    async def _up_to(self, version: int, user_id: str, inputs: RankInputs, deadline: float) -> RankInputs:
        """The inputs, read again while the user's history is older than `version`, for a short while."""
        give_up = min(deadline, time.monotonic() + self._options.read_your_writes_s)
        while inputs.history_version < version and time.monotonic() < give_up:
            await asyncio.sleep(REREAD_PAUSE_S)
            again = await self._round_trip(user_id, _NO_ITEMS, deadline, with_user=False)
            if isinstance(again, str):
                break  # what was read before is better than nothing
            inputs = again
        return inputs

    async def _read_by_another(
        self, read: ItemRead, there: NDArray[np.int64], keys: NDArray[np.int64], deadline: float
    ) -> ItemRows:
        """Rows of `keys`, which another Rank is reading; read here when it does not get them, last known when nobody does."""
        patience_s = min(self._options.store_timeout_s, max(0.0, deadline - time.monotonic()))
        await asyncio.wait([read.rows], timeout=patience_s)
        rows = read.rows.result() if read.rows.done() else None
        if rows is not None:
            return rows[there]
        mark = self._near.mark()
        try:
            records, _ = await self._store.read_items(keys, self._timeout_s(deadline))
        except StoreUnavailable:
            return self._last_known(keys)
        found = self._encode(keys, records)
        self._near.insert(keys, found, mark)
        return found

    def items_changed(self, keys: NDArray[np.int64] | None) -> None:
        """Item features of `keys` (None: of all items) have changed in the store."""
        self._near.forget(keys)
        self._reads.forget(keys)

    def users_changed(self, users: Set[str] | None) -> None:
        """Features of these users (by `user_hash`; None: of all) have changed in the store."""
        self._users.forget(users)

    def features_doubted(self) -> None:
        """Changes of features in the store may have been missed."""
        self._users.doubt()
        self._near.doubt()
        self._reads.forget(None)

    def _last_known(self, keys: NDArray[np.int64]) -> ItemRows:
        """Rows of items that cannot be read: however old, else without features."""
        rows, known = self._near.last_known(keys)
        rows[~known] = self._host.encode_items(keys[~known], missing_records(self._item_dtype, int((~known).sum())))
        return rows

    def _encode(self, keys: NDArray[np.int64], records: Records) -> ItemRows:
        for feature, count in missing_values(records).items():
            self._observer.missing_feature("item", feature, count)
        return self._host.encode_items(keys, records)

    def _read_again(self, keys: NDArray[np.int64]) -> None:
        self._stale.update(keys.tolist())
        if self._refresh is None:
            self._refresh = asyncio.get_running_loop().create_task(self._read_stale())

    async def _read_stale(self) -> None:
        try:
            while self._stale:
                keys = np.array(list(itertools.islice(self._stale, REFRESH_ITEMS)), np.int64)
                mark = self._near.mark()
                records, _ = await self._store.read_items(keys, self._options.store_timeout_s)
                self._near.insert(keys, self._encode(keys, records), mark)
                self._stale.difference_update(keys.tolist())
        except StoreUnavailable:
            self._stale.clear()  # whoever asks next tries again
        finally:
            self._refresh = None

    async def _round_trip(self, user_id: str, missing: NDArray[np.int64], deadline: float, with_user: bool) -> RankInputs | str:
        """The inputs, or why there are none."""
        started = time.monotonic()
        if started < self._skip_until:
            self._observer.store_read(0.0, "skipped")
            return "the feature store is down"
        if self._skip_until:  # this read is the probe; the others go on without the store meanwhile
            self._skip_until = started + self._options.store_retry_s
        timeout_s = self._timeout_s(deadline)
        try:
            inputs = await self._store.read_rank_inputs(user_id, missing, timeout_s, with_user=with_user)
        except StoreUnavailable as error:
            now = time.monotonic()
            self._failed(started, now)
            self._observer.store_read(now - started, "failed")
            slow = isinstance(error.__cause__, TimeoutError)
            return f"the feature store did not answer within {timeout_s * 1e3:.0f} ms" if slow else "the feature store is down"
        self._failures, self._skip_until, self._answered = 0, 0.0, time.monotonic()
        self._observer.store_read(self._answered - started, "ok")
        return inputs

    def _timeout_s(self, deadline: float) -> float:
        """What a request may spend on one read: a share of what is left of its time."""
        return min(self._options.store_timeout_s, self._options.store_budget_share * max(deadline - time.monotonic(), 1e-3))

    def _failed(self, started: float, now: float) -> None:
        if not self._failures:
            self._silent_since = max(started, self._answered)
        self._failures += 1
        silent = now - self._silent_since >= self._options.store_timeout_s
        if silent and self._failures >= self._options.store_failures:
            self._skip_until = now + self._options.store_retry_s

    def _view(self, user: UserFeatures, inputs: RankInputs, now_ms: int) -> UserView:
        histories = {event.name: visible_history(inputs.histories[event.name], event, now_ms) for event in self._schema.events}
        newest = newest_event_ms(list(histories.values()))
        return UserView(user.record, user.is_stored, histories, newest, inputs.history_version)

    def _unread(self, user: UserFeatures, fault: str) -> UserView:
        """A user whose histories could not be read."""
        histories = {event.name: missing_records(event_dtype(event), 0) for event in self._schema.events}
        return UserView(user.record, user.is_stored, histories, None, 0, fault)


def overridden(records: Records, overrides: Overrides | None) -> Records:
    """Records with the sent fields in place of the stored ones."""
    if overrides is None or not overrides.fields:
        return records
    merged = records.copy()
    for name in overrides.fields:
        merged[name] = overrides.records[name]
    return merged
