"""The feedback consumer: takes outcomes from the stream, counts what is new, and lets minutes mature.

One consumer at a time, the owner of a lease, in some replica or a process of its own; the others wait for theirs. It
keeps nothing between two batches: bitmaps and sums are read, revised and committed in the store
(`serving.store.feedback_state`) together with the place in the stream, so it may die at any moment.

A minute matures when no outcome for its lists can come any more: a whole attribution window after its end, and
`SLACK_MS` for clocks that differ and writes under way. Time is that of the store, which stamps the stream, and behind a
backlog that of the last entry read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from serving.core.errors import StoreUnavailable
from serving.feedback.ledger import MINUTE_MS, Batch, ReceiptKey, Revision, Seen, Slices, receipt_key
from serving.feedback.outcome import Outcome, decode_outcome
from serving.feedback.sums import Kind, SumKey, Sums, add, decode_key, decode_sums, encode_key, encode_sums
from serving.store.feedback_state import (
    MATURED,
    REPORTED,
    VERSIONS,
    Changes,
    FeedbackState,
    Place,
    bucket_hash,
    seen_hash,
)
from serving.store.redis_store import RedisStore

_LOG = logging.getLogger(__name__)
BATCH = 256
SLACK_MS = 60_000
LEASE_S = 5.0
MATURE_AT_ONCE = 60
_BLOCK_MS = 500
_YIELD_EVERY = 8
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0
_RELEASE_S = 1.0


class FeedbackConsumer:
    """`window_ms`: how long after serving outcomes count; `kept_ms`: how long matured minutes stay.

    `clock`: ms since the epoch; the store's, unless a test has another.
    """

    def __init__(
        self,
        store: RedisStore,
        window_ms: int,
        kept_ms: int,
        *,
        lease_s: float = LEASE_S,
        clock: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self._store, self._window_ms = store, window_ms
        self._kept = kept_ms // MINUTE_MS
        self._state, self._lease_s = FeedbackState(store, lease_s), lease_s
        self._clock = clock or self._state.now_ms
        self._place = Place()
        self.is_owner = self._is_waiting = False

    async def run(self) -> None:
        """Consume until cancelled; gives the lease back then. Whatever goes wrong is logged, and tried again."""
        pause_s = _FIRST_PAUSE_S
        try:
            while True:
                try:
                    if await self._state.acquire():
                        await self._own()
                    elif not self._is_waiting:
                        _LOG.info("feedback: another process counts outcomes; waiting for its lease")
                        self._is_waiting = True
                    pause_s = _FIRST_PAUSE_S
                    await asyncio.sleep(self._lease_s / 5)
                except Exception as error:
                    self.is_owner = False
                    is_store = isinstance(error, StoreUnavailable)
                    _LOG.warning("feedback: %s; trying again in %.2f s", error, pause_s, exc_info=not is_store)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        finally:
            if self.is_owner:
                with contextlib.suppress(StoreUnavailable, TimeoutError):  # the lease ends by itself, too
                    async with asyncio.timeout(_RELEASE_S):
                        await self._state.release()

    async def _own(self) -> None:
        """Work until somebody else has the lease."""
        self._place = await self._state.place()
        self.is_owner, self._is_waiting = True, False
        while await self._work():
            pass
        self.is_owner = False

    async def _work(self) -> bool:
        """One batch; False when somebody else has the lease."""
        asked_ms = await self._clock()
        entries = await self._store.read_outcomes(self._place.position, BATCH, _BLOCK_MS)
        drained = len(entries) < BATCH
        if not await (self._consume(entries) if entries else self._state.acquire()):
            return False
        # What is not read yet was stored after `asked_ms`, or behind the last entry.
        reached_ms = asked_ms if drained else int(entries[-1][0].partition("-")[0])
        return await self._mature(reached_ms)

    async def _consume(self, entries: Sequence[tuple[str, bytes]]) -> bool:
        """Count a batch; False when another consumer has taken over."""
        outcomes = [_decoded(data) for _, data in entries]
        keys = {receipt_key(outcome) for outcome in outcomes if outcome is not None}
        reported = [decode_key(name) for name in await self._names(REPORTED)]
        slices = Slices({key.detail for key in reported if key.kind is Kind.NE})
        batch = Batch(self._window_ms, await self._seen(keys), slices, self._place.first_open)
        for number, outcome in enumerate(outcomes, start=1):
            if outcome is None:
                batch.unreadable()
            else:
                batch.add(outcome)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # Ranks share this loop
        changes = await self._changes(batch.finish())
        changes.hashes[VERSIONS] = _heard([outcome for outcome in outcomes if outcome is not None])
        return await self._commit(replace(self._place, position=entries[-1][0]), changes, len(entries))

    async def _names(self, name: str) -> list[bytes]:
        (found,) = await self._state.read([name])
        return list(found)

    async def _seen(self, keys: set[ReceiptKey]) -> dict[ReceiptKey, Seen]:
        """Bitmaps of these receipts, those that are known."""
        wanted: dict[str, list[bytes]] = {}
        for key in keys:
            wanted.setdefault(seen_hash(key.minute), []).append(key.identity)
        found = await self._state.read_fields(wanted)
        return {
            key: Seen.decode(found[seen_hash(key.minute)][key.identity])
            for key in keys
            if key.identity in found[seen_hash(key.minute)]
        }

    async def _changes(self, revision: Revision) -> Changes:
        """The revision with what is stored added, since a commit sets fields."""
        sums = {bucket_hash(minute): bucket for minute, bucket in revision.buckets.items()} | {REPORTED: revision.reported}
        changes = Changes(minutes=set(revision.buckets))
        changes.hashes = await self._added(sums)
        for key, seen in revision.seen.items():
            changes.hashes.setdefault(seen_hash(key.minute), {})[key.identity] = seen.encode()
            changes.minutes.add(key.minute)
        return changes

    async def _added(self, sums: Mapping[str, Sums]) -> dict[str, dict[bytes, bytes]]:
        """Fields of the stored hashes that `sums` touch, with `sums` added."""
        stored = await self._state.read_fields({name: [encode_key(key) for key in own] for name, own in sums.items()})
        added = {}
        for name, own in sums.items():
            total = decode_sums(stored.get(name, {}))
            add(total, own)
            added[name] = encode_sums(total)
        return added

    async def _mature(self, reached_ms: int) -> bool:
        """Let minutes mature and old ones go; False when another consumer has taken over."""
        first_open = (reached_ms - self._window_ms - SLACK_MS) // MINUTE_MS
        while self._place.first_open < first_open:
            ripe = await self._state.minutes(self._place.first_open, first_open - 1)
            ripe = ripe[:MATURE_AT_ONCE]
            until = ripe[-1] + 1 if len(ripe) == MATURE_AT_ONCE else first_open
            old = await self._state.minutes(0, until - 1 - self._kept)
            total: Sums = {}
            for found in await self._state.read([bucket_hash(minute) for minute in ripe]):
                add(total, decode_sums(found))
                await asyncio.sleep(0)
            changes = Changes(gone=set(old), dropped=[*map(seen_hash, ripe), *map(bucket_hash, old)])
            changes.hashes = await self._added({MATURED: total}) if total else {}
            for name, fields in (await self._retired(reached_ms)).items():
                changes.hashes.setdefault(name, {}).update(fields)
            if not await self._commit(replace(self._place, first_open=until), changes):
                return False
        return True

    async def _retired(self, reached_ms: int) -> dict[str, dict[bytes, bytes]]:
        """Fields to delete: sums of versions of which nothing has been heard since their last minute matured."""
        before_ms = reached_ms - 2 * self._window_ms - self._kept * MINUTE_MS - SLACK_MS
        versions, *hashes = await self._state.read([VERSIONS, REPORTED, MATURED])
        silent = {name for name, heard_ms in versions.items() if int(heard_ms) < before_ms}
        if not silent:
            return {}
        deleted = {VERSIONS: dict.fromkeys(silent, b"")}
        for name, found in zip((REPORTED, MATURED), hashes, strict=True):
            deleted[name] = {f: b"" for f in found if _versions_of(decode_key(f)) & silent}
        return deleted

    async def _commit(self, after: Place, changes: Changes, counted: int = 0) -> bool:
        place = await self._state.commit(self._place, after, changes, counted)
        if place is None:
            _LOG.info("feedback: another consumer has taken over")
            return False
        self._place = place
        return True


def _heard(outcomes: Sequence[Outcome]) -> dict[bytes, bytes]:
    """When each version was last heard of, canaries included."""
    newest: dict[str, int] = {}
    for outcome in outcomes:
        served = outcome.served
        for version in (served.model_version, *(() if served.canary is None else (served.canary.version,))):
            newest[version] = max(newest.get(version, 0), outcome.reported_ms)
    return {version.encode(): str(at_ms).encode() for version, at_ms in newest.items()}


def _versions_of(key: SumKey) -> set[bytes]:
    """The versions that sums are of."""
    return {key.version.encode(), *([key.detail.encode()] if key.kind is Kind.CANARY else [])}


def _decoded(data: bytes) -> Outcome | None:
    try:
        return decode_outcome(data)
    except ValueError as error:
        _LOG.warning("%s", error)
        return None
