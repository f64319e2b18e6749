"""The ranker: one request from admission to an ordered list, for one model version.

    admit → read (near cache + one store round trip) → user state (cache or encode) → score → order

Called by the protocol adapters on the event loop; knows no gRPC and no device. Rank keeps answering:
a store that is down, a version that is not visible yet or scores that are not finite lower the rung
of the reply, with the reason in it. Only overload, spent deadlines and shutdown refuse.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact
from model.flops import FlopModel
from model.hashing import string_key
from model.history import newest_event_ms
from model.records import missing_values
from serving.core.degradation import Costs, Ladder, Way, describe
from serving.core.errors import DeadlineExpired, Overloaded, ServingError, Unready
from serving.core.feature_read import FeatureReader, UserView, overridden
from serving.core.frontier import Frontier, default_frontier
from serving.core.host_features import RECORD, HostFeatures, ItemRows, Rows
from serving.core.host_time import HostTime
from serving.core.observer import Observer
from serving.core.options import CoreOptions
from serving.core.ordering import Ordering, PopularityPrior, are_sane
from serving.core.scheduler import Reservation, Scheduler, Urgency, overloaded
from serving.core.types import (
    Priority,
    RankRequest,
    RankResult,
    RecordedEvents,
    Rung,
    ServedFeatures,
    StageTimes,
    UserEvent,
)
from serving.core.user_states import Flight, Flights, StateKey, UserState, UserStateCache, state_key
from serving.core.write_encoder import WriteEncoder
from serving.engines.base import Engine
from serving.store.base import FeatureStore
from serving.store.keys import user_hash

WRITE_DEADLINE_S = 10.0
SHARES = {Priority.LOW: 0.5, Priority.NORMAL: 0.8, Priority.HIGH: 0.95}
"""Share of its time that a request may be predicted to take, by priority. What one leaves is there for those above it,
and an answer just after the deadline helps nobody."""

_NO_KEYS = np.empty(0, np.int64)
_log = logging.getLogger(__name__)
_REFUSALS: dict[type[ServingError], str] = {
    Overloaded: "overloaded",
    DeadlineExpired: "deadline",
    Unready: "unready",
}


@dataclass(frozen=True)
class _Served:
    """Where a reply came from."""

    probabilities: NDArray[np.float32]
    state: UserState | None
    cached: bool
    rung: Rung
    reason: str
    unknown_items: int
    times: StageTimes
    scored: NDArray[np.int64] | None = None  # positions that the model has scored; None: all


class Ranker:
    """Ranks with one artifact on one engine and one store."""

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        store: FeatureStore,
        options: CoreOptions,
        observer: Observer,
        frontier: Frontier | None = None,
    ) -> None:
        self.artifact, self.options = artifact, options
        self._store, self._observer = store, observer
        self._flops = FlopModel.from_json(artifact.manifest.flops, artifact.config)
        self._host = HostFeatures(artifact)
        self._reader = FeatureReader(self._host, store, options, observer)
        self._scheduler = Scheduler(engine, self._host, self._flops, options, observer)
        self._states = UserStateCache(options.user_state_cache_mb * 1e6)
        self._flights = Flights(self._states)
        self._ordering, self._prior = Ordering(artifact.schema), PopularityPrior(artifact)
        self._ladder = Ladder(frontier or default_frontier(), options.degrade_from, options.degrade_to)
        self._writes = WriteEncoder(self._encode_written)
        self._host_time = HostTime()
        self._in_flight = 0
        self._accepting = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Open every slot and warm its essential shapes, then accept requests."""
        await self._scheduler.start()
        self._host_time.start()
        self._accepting = True

    async def drain(self) -> None:
        """Refuse new requests and wait for those in flight."""
        self._accepting = False
        await self._writes.stop()
        await self._idle.wait()

    async def close(self) -> None:
        """Drain, end the slots and forget every state. The engine and the store belong to the caller."""
        try:
            await self.drain()
        finally:  # whoever closes the engine next counts on it that no slot runs
            self._host_time.stop()
            await self._scheduler.close()
            self._states.clear()

    @property
    def cold_shapes(self) -> int:
        """Tensor shapes that engine slots have not run yet; batches avoid them until they have."""
        return self._scheduler.cold_shapes

    async def rank(self, request: RankRequest) -> RankResult:
        """Score and order; raises `Overloaded`, `DeadlineExpired` or `Unready`."""
        try:
            self._admit(request)
            self._in_flight += 1
            self._idle.clear()
            try:
                result = await self._rank(request)
            finally:
                self._in_flight -= 1
                self._host_time.answered(time.monotonic())
                if not self._in_flight:
                    self._idle.set()
        except ServingError as error:
            self._observer.refused(_REFUSALS.get(type(error), "invalid"))
            raise
        self._observer.ranked(result, time.monotonic() - request.started)
        return result

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        """Store events; returns once acknowledged. States of recently ranked users are then encoded in the background."""
        if not self._accepting:
            raise Unready("the server is starting or stopping")
        recorded = await self._store.record_events(events)
        if self.options.encode_on_write:
            for user_id in recorded.versions:
                if self._states.newest_of(user_id) is not None:
                    self._writes.request(user_id)
        return recorded

    async def forget_user(self, user_id: str) -> bool:
        """Delete a user from the store and from this process; False when nothing was stored."""
        if not self._accepting:
            raise Unready("the server is starting or stopping")
        deleted = await self._store.delete_user(user_id)
        self._forget(user_id)
        return deleted

    def users_forgotten(self, users: Set[str]) -> None:
        """These users (by `user_hash`) have been deleted from the store, by whichever replica."""
        self._reader.users_changed(users)
        for user_id in {*self._states.users(), *self._flights.users()}:
            if user_hash(user_id) in users:
                self._forget(user_id)

    def _forget(self, user_id: str) -> None:
        self._reader.users_changed({user_hash(user_id)})
        self._states.forget(user_id)
        self._flights.forget(user_id)

    def items_changed(self, keys: NDArray[np.int64] | None) -> None:
        """Item features of `keys` (None: of all items) have changed in the store."""
        self._reader.items_changed(keys)

    def users_changed(self, users: Set[str] | None) -> None:
        """Features of these users (by `user_hash`; None: of all) have changed in the store."""
        self._reader.users_changed(users)

    def users_stored(self, user_ids: Sequence[str]) -> None:
        """Features of these users have been stored by this process; the store's own word comes a moment later."""
        self._reader.users_changed({user_hash(user_id) for user_id in user_ids})

    def features_doubted(self) -> None:
        """Changes of features in the store may have been missed."""
        self._reader.features_doubted()

    def refusal(self, deadline: float, priority: Priority = Priority.NORMAL) -> Overloaded | None:
        """Why a request that must be answered by `deadline` would be refused at once, before more is known of it."""
        if self._in_flight >= self.options.max_queue:
            wait = max(self._scheduler.drain_s(), 1e-3)
            return Overloaded(f"queue: {self._in_flight} requests wait, the limit is {self.options.max_queue}", wait)
        # No rung spares the event loop its part, so what that cannot do in time is refused with degrading, too.
        wait = self._host_time.wait_s(self._in_flight)
        if not self.options.degrade:
            wait = max(wait, self._scheduler.drain_s())
        return overloaded(wait) if wait > max(0.0, SHARES[priority] * (deadline - time.monotonic())) else None

    def _admit(self, request: RankRequest) -> None:
        if not self._accepting:
            raise Unready("the server is starting or stopping")
        now, candidates = time.monotonic(), len(request.candidates)
        if now >= request.deadline:
            raise DeadlineExpired(f"deadline: 0.0 ms left cannot suffice for {candidates} candidate(s)")
        if (refusal := self.refusal(request.deadline, request.priority)) is not None:
            raise refusal
        if not self.options.degrade:
            self._scheduler.admit(candidates, request.deadline, now, SHARES[request.priority])

    async def _rank(self, request: RankRequest) -> RankResult:
        started = time.monotonic()
        view, items = await self._reader.read(
            request.user_id, request.candidates.keys, request.received_ms, request.deadline, request.min_event_version
        )
        store_s = time.monotonic() - started
        if (overrides := request.candidates.overrides) is not None:
            items = self._host.encode_items(request.candidates.keys, overridden(items[RECORD], overrides))
        with self._scheduler.reserved(self._scheduler.score_s(len(request.candidates))) as reservation:
            served = await self._serve(request, view, items, store_s, reservation)
        order, values = self._order(request, served)
        newest = served.state.newest_ms if served.state else None
        return RankResult(
            model=self.artifact.manifest.model,
            version=self.artifact.manifest.version,
            order=order,
            probabilities=served.probabilities[order],
            values=values[order],
            rung=served.rung,
            rung_reason=served.reason,
            newest_event_age_ms=-1 if newest is None else max(request.received_ms - newest, 0),
            history_length=served.state.history_length if served.state else 0,
            user_state_cached=served.cached,
            unknown_items=served.unknown_items,
            unknown_user=self._is_unknown(request, view),
            times=served.times,
            features=_features(request, view, items, order, served.rung) if request.keeps_features else None,
        )

    def _order(self, request: RankRequest, served: _Served) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Positions best first; candidates that the model has not scored come after those it has."""
        columns, top_k = request.candidates.columns, request.top_k
        if served.scored is None:
            return self._ordering.order(served.probabilities, columns, top_k)
        everything, values = self._ordering.order(served.probabilities, columns, 0)
        is_scored = np.zeros(len(values), bool)
        is_scored[served.scored] = True
        order = everything[np.argsort(~is_scored[everything], kind="stable")]
        return (order[:top_k] if top_k else order), values

    async def _serve(
        self, request: RankRequest, view: UserView, items: ItemRows, store_s: float, reservation: Reservation
    ) -> _Served:
        """Probabilities from the best rung that works."""
        candidates = request.candidates
        times = StageTimes(store_s=store_s)
        unknown = 0
        try:
            user = overridden(view.user, request.user_overrides)
            key = state_key(request.user_id, request.user_key, user, view.histories)
            way = self._choose(request, view, key, reservation)
            if way.rung is Rung.PRIOR:
                return self._from_prior(request, describe(way, len(candidates)), unknown, times)
            urgency = self._scheduler.urgency(request.started, request.deadline, way.seconds, request.priority)
            asked = time.monotonic()
            state, cached, rung, reason = await self._state(request, view, user, key, way, urgency)
            # An encode that others had asked for may have waited longer than this request did.
            encode_queue_s = 0.0 if cached else min(state.queue_s, time.monotonic() - asked)
            scored = self._prior_best(request, way.keep) if way.keep else None
            kept = items if scored is None else items[scored]
            inputs = self._host.score_inputs(kept, request.context, request.received_ms, state.newest_ms, state.affinities)
            unknown = inputs.unknown_items
            reservation.release()
            job = self._scheduler.score_job(inputs, dict(state.tensors), len(kept), urgency, state.flops_per_candidate)
            try:
                probabilities = await job.result
            except asyncio.CancelledError:
                self._scheduler.cancel(job)
                raise
            times = StageTimes(store_s, encode_queue_s + job.queue_s, 0.0 if cached else state.encode_s, job.run_s)
            if are_sane(probabilities):
                if scored is not None:
                    rest = self._prior.probabilities(candidates.keys)
                    rest[scored] = probabilities
                    probabilities = rest
                if job.fault:
                    rung, reason = _on_backup(rung), "; ".join(filter(None, (reason, job.fault)))
                return _Served(probabilities, state, cached, rung, reason, unknown, times, scored)
            self._observer.insane_scores()
            fault = "the model's scores were not finite"
        except ServingError:
            raise
        except Exception as error:
            _log.exception("ranking fell to the popularity prior")
            fault = f"the engine failed: {type(error).__name__}"
        return self._from_prior(request, fault, unknown, times)

    def _from_prior(self, request: RankRequest, reason: str, unknown: int, times: StageTimes) -> _Served:
        probabilities = self._prior.probabilities(request.candidates.keys)
        return _Served(probabilities, None, False, Rung.PRIOR, reason, unknown, times)

    def _prior_best(self, request: RankRequest, keep: int) -> NDArray[np.int64]:
        """Positions of the `keep` candidates that the popularity prior values most, ascending."""
        prior = self._prior.probabilities(request.candidates.keys)
        best, _ = self._ordering.order(prior, request.candidates.columns, keep)
        return np.sort(best)

    def _choose(self, request: RankRequest, view: UserView, key: StateKey, reservation: Reservation) -> Way:
        """How to answer, given what the engine has to do; raises `Overloaded` where degrading is off."""
        scheduler, candidates = self._scheduler, len(request.candidates)
        costs = Costs(
            encode=self._encode_costs(view, key),
            per_candidate=scheduler.score_s(1) - scheduler.score_s(0),
            fixed=scheduler.score_s(0),
            candidates=candidates,
            events_behind=self._events_behind(request, view),
        )
        now = time.monotonic()
        wait_s, budget_s = scheduler.drain_s(reservation), request.deadline - now
        full = costs.encode.get(1.0, 0.0) + scheduler.score_s(candidates)
        if self.options.degrade:
            self._observer.demanded(full, self._host_time.per_request_s)
            return self._ladder.choose(costs, wait_s, budget_s, SHARES[Priority.NORMAL] / SHARES[request.priority])
        if wait_s > 0 and wait_s + full > budget_s:  # it was admitted with time to spare; only what has become hopeless goes
            raise overloaded(wait_s)
        self._observer.demanded(full, self._host_time.per_request_s)
        return Way(full)

    def _encode_costs(self, view: UserView, key: StateKey) -> dict[float, float]:
        """Engine seconds of the encode by history share; empty when the state is at hand."""
        if self._states.get(key) is not None:
            return {}
        scheduler, shapes = self._scheduler, self._scheduler.shapes
        level = shapes.level(view.lengths)
        full = 0.0 if key in self._flights else scheduler.encode_s(level)
        return {1.0: full} | {shapes.shares[shorter]: scheduler.encode_s(shorter) for shorter in range(level)}

    def _events_behind(self, request: RankRequest, view: UserView) -> int | None:
        """How many events the cached state of the user lacks; None when there is none, or when it is asked to be newer."""
        stale = self._states.newest_of(request.user_id)
        if stale is None or view.fault or stale.history_version < request.min_event_version:
            return None
        return max(0, view.history_version - stale.history_version)

    async def _state(
        self, request: RankRequest, view: UserView, user: NDArray[np.void], key: StateKey, way: Way, urgency: Urgency
    ) -> tuple[UserState, bool, Rung, str]:
        """The user's state, whether it was cached, and the rung and reason of the reply."""
        rung, reason = way.rung, "" if way.rung is Rung.FULL else describe(way, len(request.candidates))
        if view.fault or way.stale:
            stale = self._states.newest_of(request.user_id)
            if stale is not None:
                self._observer.user_state(True)
                return stale, True, max(rung, Rung.STALE_STATE), view.fault or reason
            rung, reason = Rung.SHORT_HISTORY, view.fault
        elif view.history_version < request.min_event_version:
            rung = max(rung, Rung.STALE_STATE)
            reason = f"history version {request.min_event_version} is not visible yet; found {view.history_version}"
        if way.history_share < 1:
            view = self._shortened(view, way.history_share)
            key = state_key(request.user_id, request.user_key, user, view.histories)
        state = self._states.get(key)
        self._observer.user_state(state is not None)
        if state is not None:
            return state, True, rung, reason
        state = await self._join(key, urgency, lambda: self._launch(view, user, request.user_key, urgency))
        return state, False, rung, reason

    def _shortened(self, view: UserView, share: float) -> UserView:
        """The newest events of every history, as many as the padding level of `share` holds."""
        histories = self._scheduler.shapes.shortened(view.histories, share)
        return replace(view, histories=histories, newest_ms=newest_event_ms(list(histories.values())), is_partial=True)

    async def _join(self, key: StateKey, urgency: Urgency, launch: Callable[[], Flight]) -> UserState:
        """Share the encode of `key`; a flight that expired for a more hurried request is flown again."""
        while True:
            try:
                state = await self._flights.join(key, urgency, launch)
            except DeadlineExpired:
                if time.monotonic() >= urgency.deadline:
                    raise
                continue
            self._observer.user_state_bytes(self._states.bytes)
            return state

    def _launch(
        self, view: UserView, user: NDArray[np.void], user_key: int, urgency: Urgency, background: bool = False
    ) -> Flight:
        """Submit the encode of a user; the flight's future holds the state."""
        lengths = view.lengths
        level = self._scheduler.shapes.level(lengths)
        steps = self._scheduler.shapes.levels[level]
        for feature, count in missing_values(user).items():
            self._observer.missing_feature("user", feature, count)
        inputs = self._host.user_inputs(user, user_key, view.histories, view.newest_ms, steps)
        affinities = self._host.affinity_record(view.histories)
        useful = self._flops.encode(lengths).total
        job = self._scheduler.encode_job(inputs, level, useful, urgency, background=background)
        landed: asyncio.Future[UserState] = asyncio.get_running_loop().create_future()

        def land(result: asyncio.Future[Rows]) -> None:
            if landed.done():
                return
            if result.cancelled():
                landed.cancel()
            elif (error := result.exception()) is not None:
                landed.set_exception(error)
            else:
                tensors, length = result.result(), view.history_length
                times = (job.queue_s, job.run_s)
                landed.set_result(
                    UserState(
                        tensors,
                        affinities,
                        view.newest_ms,
                        length,
                        *times,
                        view.history_version,
                        is_degraded=bool(view.fault) or view.is_partial,
                        flops_per_candidate=self._flops.score(0, 1, lengths=lengths).total,
                    )
                )

        job.result.add_done_callback(land)
        return Flight(landed, lambda: self._scheduler.cancel(job), lambda sooner: self._scheduler.promote(job, sooner))

    async def _encode_written(self, user_id: str) -> None:
        """Bring the cached state of a user up to date, as background work."""
        now = time.monotonic()
        deadline = now + WRITE_DEADLINE_S
        view, _ = await self._reader.read(user_id, _NO_KEYS, int(time.time() * 1000), deadline)
        user_key = string_key(user_id, self.artifact.schema.hash)
        key = state_key(user_id, user_key, view.user, view.histories)
        if view.fault or key in self._flights or self._states.get(key) is not None:
            return
        flight = self._flights.start(key, self._launch(view, view.user, user_key, Urgency(deadline, deadline), background=True))
        await asyncio.wait([flight.future])
        self._observer.user_state_bytes(self._states.bytes)

    def _is_unknown(self, request: RankRequest, view: UserView) -> bool:
        """Nothing is known of the user: no row for the id, or neither features nor history."""
        if self.artifact.schema.user_id_table is not None:
            return not self._host.is_known_user(request.user_key)
        return not (view.has_features or view.history_length or request.user_overrides is not None)


def _on_backup(rung: Rung) -> Rung:
    """The rung of a reply that the backup engine scored: whatever else degraded it says more."""
    return Rung.BACKUP_ENGINE if rung is Rung.FULL else rung


def _features(request: RankRequest, view: UserView, items: ItemRows, order: NDArray[np.int64], rung: Rung) -> ServedFeatures:
    return ServedFeatures(
        user=overridden(view.user, request.user_overrides),
        has_user=view.has_features or request.user_overrides is not None,
        histories=view.histories,
        items=items[RECORD].take(order),  # several times faster than []
        is_intact=not view.fault and rung is not Rung.SHORT_HISTORY,
    )
