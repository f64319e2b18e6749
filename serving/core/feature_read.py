"""What one Rank reads: item features through the near cache, the rest in one store round trip.

Items that have outlived their time in the cache are served once more and read again in the background,
each by one read at a time however many Ranks ask for it.

Owns the read budget (a share of the remaining deadline) and a circuit breaker: when a few reads in a
row failed and the store has been silent for a whole `store_timeout_s`, requests go on without it at
once, and one read in a while probes it. Callers in a hurry alone do not open it: the store answers others.
A failed read is an answer too (`UserView.fault`): the ranker degrades, it does not fail.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.history import newest_event_ms, visible_history
from model.records import Records, event_dtype, feature_dtype, missing_records, missing_values
from serving.core.errors import StoreUnavailable
from serving.core.host_features import HostFeatures, ItemRows
from serving.core.observer import Observer
from serving.core.options import CoreOptions
from serving.core.types import Overrides
from serving.store.base import FeatureStore, RankInputs
from serving.store.near_cache import NearCache

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
        items, absent, stale = self._near.lookup(item_keys)
        missing, mark = item_keys[absent], self._near.mark()
        self._observer.item_cache(len(item_keys) - len(missing), len(missing))
        if stale.any():
            self._read_again(item_keys[stale])
        inputs = await self._round_trip(user_id, missing, deadline)
        give_up = min(deadline, time.monotonic() + self._options.read_your_writes_s)
        while isinstance(inputs, RankInputs) and inputs.history_version < min_version and time.monotonic() < give_up:
            await asyncio.sleep(REREAD_PAUSE_S)
            again = await self._round_trip(user_id, missing, deadline)
            if isinstance(again, str):
                break  # what was read before is better than nothing
            inputs = again
        if isinstance(inputs, str):
            items[absent] = self._last_known(missing)
            return self._nobody(inputs), items
        if len(missing):
            items[absent] = found = self._encode(missing, inputs.items)
            self._near.insert(missing, found, mark)
        return self._view(inputs, now_ms), items

    def items_changed(self, keys: NDArray[np.int64] | None) -> None:
        """Item features of `keys` (None: of all items) have changed in the store."""
        self._near.forget(keys)

    def items_doubted(self) -> None:
        """Changes of item features in the store may have been missed."""
        self._near.doubt()

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

    async def _round_trip(self, user_id: str, missing: NDArray[np.int64], deadline: float) -> RankInputs | str:
        """The inputs, or why there are none."""
        started = time.monotonic()
        if started < self._skip_until:
            self._observer.store_read(0.0, "skipped")
            return "the feature store is down"
        if self._skip_until:  # this read is the probe; the others go on without the store meanwhile
            self._skip_until = started + self._options.store_retry_s
        timeout_s = min(self._options.store_timeout_s, self._options.store_budget_share * max(deadline - started, 1e-3))
        try:
            inputs = await self._store.read_rank_inputs(user_id, missing, timeout_s)
        except StoreUnavailable as error:
            now = time.monotonic()
            self._failed(started, now)
            self._observer.store_read(now - started, "failed")
            slow = isinstance(error.__cause__, TimeoutError)
            return f"the feature store did not answer within {timeout_s * 1e3:.0f} ms" if slow else "the feature store is down"
        self._failures, self._skip_until, self._answered = 0, 0.0, time.monotonic()
        self._observer.store_read(self._answered - started, "ok")
        return inputs

    def _failed(self, started: float, now: float) -> None:
        if not self._failures:
            self._silent_since = max(started, self._answered)
        self._failures += 1
        silent = now - self._silent_since >= self._options.store_timeout_s
        if silent and self._failures >= self._options.store_failures:
            self._skip_until = now + self._options.store_retry_s

    def _view(self, inputs: RankInputs, now_ms: int) -> UserView:
        histories = {event.name: visible_history(inputs.histories[event.name], event, now_ms) for event in self._schema.events}
        has_features = inputs.user is not None
        user = inputs.user if inputs.user is not None else missing_records(self._user_dtype, 1)
        newest = newest_event_ms(list(histories.values()))
        return UserView(user, has_features, histories, newest, inputs.history_version)

    def _nobody(self, fault: str) -> UserView:
        """A user of whom nothing could be read."""
        histories = {event.name: missing_records(event_dtype(event), 0) for event in self._schema.events}
        return UserView(missing_records(self._user_dtype, 1), False, histories, None, 0, fault)


def overridden(records: Records, overrides: Overrides | None) -> Records:
    """Records with the sent fields in place of the stored ones."""
    if overrides is None or not overrides.fields:
        return records
    merged = records.copy()
    for name in overrides.fields:
        merged[name] = overrides.records[name]
    return merged
