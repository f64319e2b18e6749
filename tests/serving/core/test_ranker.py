"""The ranker on a real engine and a real store: what a Rank promises."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rank_fixtures import Recorder, by_candidate, click, impression, request
from store_fixtures import until

from model.artifact import Artifact
from model.history import newest_event_ms, visible_history
from model.records import Records, event_dtype, feature_dtype, missing_records
from model.signature import PROBABILITIES, SCORE_CANDIDATES
from serving.core.degradation import Costs, Ladder, Way
from serving.core.errors import DeadlineExpired, Overloaded, StoreUnavailable, Unready
from serving.core.frontier import default_frontier
from serving.core.options import CoreOptions
from serving.core.ranker import Ranker
from serving.core.types import Overrides, Priority, RecordedEvents, Rung, UserEvent
from serving.engines.base import Engine, Session, Tensors
from serving.engines.open import open_engine
from serving.store.base import FeatureStore, RankInputs
from serving.store.keys import user_hash
from serving.store.open import EMBEDDED, open_store
from serving.store.store_changes import StoreChanges

OPTIONS = CoreOptions(max_batch_candidates=320, max_batch_users=2, max_batch_requests=4, item_ttl_s=600)
ALL = np.arange(1, 101)


class World:
    """One engine and one store; rankers on them end with it."""

    def __init__(self, artifact: Artifact, engine: Engine, store: Any, stack: AsyncExitStack) -> None:
        self.artifact, self.schema, self.engine, self.store = artifact, artifact.schema, engine, store
        self._stack = stack

    async def ranker(
        self,
        options: CoreOptions = OPTIONS,
        store: FeatureStore | None = None,
        engine: Engine | None = None,
    ) -> tuple[Ranker, Recorder]:
        """A started ranker and what it reports to."""
        recorder = Recorder()
        ranker = Ranker(self.artifact, engine or self.engine, store or self.store, options, recorder)
        await ranker.start()
        self._stack.push_async_callback(ranker.close)
        if isinstance(engine, Gated):
            self._stack.callback(engine.gate.set)  # first: a scenario that fails must not wait for its own gate
        return ranker, recorder


@pytest.fixture
def play(artifact: Artifact, engine_cache: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    """Run a scenario in a world of its own: items 1 … 1000 have features, nobody has events."""

    def run(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with AsyncExitStack() as stack:
                engine = open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
                store = await open_store(EMBEDDED, artifact.schema)
                stack.push_async_callback(store.close)
                items = missing_records(feature_dtype(artifact.schema.item_features), 1000)
                items["popularity"] = np.arange(1000)
                items["genres"][:, 0] = 1 + np.arange(1000) % 20
                await store.put_items(np.arange(1, 1001), items)
                await asyncio.wait_for(scenario(World(artifact, engine, store, stack)), timeout=240)

        asyncio.run(main())

    return run


def test_an_event_changes_the_next_rank_and_is_reported(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        before = await ranker.rank(request(world.schema, "ann", ALL))
        recorded = await ranker.record_events([click(world.schema, "ann", 42, "e1")])
        assert (recorded.stored, recorded.duplicates) == (1, 0)
        after = await ranker.rank(request(world.schema, "ann", ALL, min_version=recorded.versions["ann"]))
        assert (before.rung, after.rung) == (Rung.FULL, Rung.FULL)
        assert (before.history_length, after.history_length) == (0, 1)
        assert before.newest_event_age_ms == -1
        assert 0 <= after.newest_event_age_ms < 60_000
        assert not np.array_equal(by_candidate(before), by_candidate(after))

    play(scenario)


def test_scores_have_the_same_bits_alone_batched_cached_split_and_after_restart(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker()
        users = [f"user{i}" for i in range(6)]
        events = [
            click(world.schema, u, i + 1, f"{u}-{i}", time_ms=1_000_000 + i) for n, u in enumerate(users) for i in range(n * 5)
        ]
        await ranker.record_events(events)
        now = 1_800_000_000_000
        alone = {u: by_candidate(await ranker.rank(request(world.schema, u, ALL, now_ms=now))) for u in users}
        start = len(recorder.batches)
        together = await asyncio.gather(
            *(ranker.rank(request(world.schema, u, ALL, now_ms=now)) for u in users for _ in range(3))
        )
        assert all(result.user_state_cached for result in together)
        assert any(rows > len(ALL) for _, rows, *_ in recorder.batches[start:]), "nothing was merged"
        for user, result in zip([u for u in users for _ in range(3)], together, strict=True):
            assert np.array_equal(by_candidate(result), alone[user])
        again, split = await world.ranker(OPTIONS.model_copy(update={"work_budget_ms": 1e-3}))
        cold = await asyncio.gather(*(again.rank(request(world.schema, u, ALL, now_ms=now)) for u in users))
        assert any(reason == "split" for *_, reason in split.batches)
        for user, result in zip(users, cold, strict=True):
            assert not result.user_state_cached
            assert np.array_equal(by_candidate(result), alone[user])

    play(scenario)


def test_scores_are_those_of_the_engine_run_directly(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        await ranker.record_events([click(world.schema, "bob", 7, "b1", time_ms=1_000)])
        sent = request(world.schema, "bob", ALL)
        got = by_candidate(await ranker.rank(sent))
        inputs = await world.store.read_rank_inputs("bob", ALL, 5.0)
        host = ranker._host
        histories = {e.name: inputs.histories[e.name] for e in world.schema.events}
        user = missing_records(feature_dtype(world.schema.user), 1)
        rows = host.user_inputs(
            user, sent.user_key, histories, newest_event_ms(list(histories.values())), {"click": 8, "impression": 8}
        )
        session = world.engine.open_session()
        states = session.run("encode_user", rows)
        record, rows = host.affinity_record(histories), host.encode_items(ALL, inputs.items)
        items = host.score_inputs(rows, sent.context, sent.received_ms, 1_000, record)
        index = {"request_index": np.zeros(len(ALL), np.int64)}
        direct = session.run(SCORE_CANDIDATES, {**states, **items.context, **items.items, **index})
        assert np.array_equal(got, direct[PROBABILITIES])

    play(scenario)


def test_order_follows_the_value_expression_with_ties_by_position(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        bids = np.zeros(len(ALL))
        bids[10] = 1e6
        result = await ranker.rank(request(world.schema, "cat", ALL, bids=bids, top_k=5))
        assert len(result.order) == len(result.values) == len(result.probabilities) == 5
        assert result.order[0] == 10
        assert np.all(np.diff(result.values) <= 0)
        same = await ranker.rank(request(world.schema, "cat", np.full(4, 3), bids=np.ones(4)))
        assert same.order.tolist() == [0, 1, 2, 3]

    play(scenario)


def test_unknown_items_and_users_are_scored_and_counted(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        result = await ranker.rank(request(world.schema, "dan", [1, 2, 5001, 5002, 5003]))
        assert (result.unknown_items, result.unknown_user, result.rung) == (3, True, Rung.FULL)
        await ranker.record_events([click(world.schema, "dan", 1, "d1")])
        assert not (await ranker.rank(request(world.schema, "dan", [1]))).unknown_user

    play(scenario)


def test_sent_user_features_win_over_stored_ones(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        records = missing_records(feature_dtype(world.schema.user), 1)
        records["age"] = 40.0
        plain = await ranker.rank(request(world.schema, "eve", ALL))
        sent = await ranker.rank(request(world.schema, "eve", ALL, user_overrides=Overrides(records, ("age",))))
        await world.store.put_users(["eve"], records)
        ranker.users_stored(["eve"])
        stored = await ranker.rank(request(world.schema, "eve", ALL))
        assert not np.array_equal(by_candidate(plain), by_candidate(sent))
        # time since the newest event is unknown in all three, so equal features mean equal bits
        assert np.array_equal(by_candidate(stored), by_candidate(sent))
        assert stored.user_state_cached

    play(scenario)


def test_sent_item_features_win_over_stored_ones_for_this_request_only(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        records = missing_records(feature_dtype(world.schema.item_features), len(ALL))
        records["popularity"] = 5000.0
        plain = await ranker.rank(request(world.schema, "eve", ALL))
        sent = request(world.schema, "eve", ALL)
        block = replace(sent.candidates, overrides=Overrides(records, ("popularity",)))
        changed = await ranker.rank(replace(sent, candidates=block))
        again = await ranker.rank(request(world.schema, "eve", ALL))
        stored = (await world.store.read_rank_inputs("eve", ALL, 5.0)).items.copy()
        stored["popularity"] = 5000.0
        await world.store.put_items(ALL, stored)
        fresh, _ = await world.ranker()  # its cache knows nothing older
        told = await fresh.rank(request(world.schema, "eve", ALL))
        assert np.array_equal(by_candidate(plain), by_candidate(again))
        assert not np.array_equal(by_candidate(plain), by_candidate(changed))
        assert np.array_equal(by_candidate(changed), by_candidate(told))

    play(scenario)


def test_concurrent_requests_of_one_user_share_one_encode(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker()
        await asyncio.gather(*(ranker.rank(request(world.schema, "fay", ALL)) for _ in range(8)))
        assert recorder.encodes() == 1
        assert recorder.bytes > 0

    play(scenario)


def test_encode_on_write_warms_the_state_before_the_next_rank(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker()
        await ranker.rank(request(world.schema, "gus", ALL))
        await ranker.record_events([click(world.schema, "gus", 9, "g1"), click(world.schema, "stranger", 9, "s1")])
        await ranker._writes.settle()
        assert [reason for graph, *_, reason in recorder.batches if graph == "encode_user"] == ["idle", "background"]
        result = await ranker.rank(request(world.schema, "gus", ALL))
        assert (result.user_state_cached, result.history_length) == (True, 1)

    play(scenario)


def test_store_down_keeps_answering_on_lower_rungs(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker(OPTIONS.model_copy(update={"store_timeout_s": 0.3, "store_retry_s": 60.0}))
        await ranker.record_events([click(world.schema, "hal", 3, "h1")])
        full = await ranker.rank(request(world.schema, "hal", ALL))
        world.store.server.close()
        stale = await ranker.rank(request(world.schema, "hal", ALL, budget_s=5.0))
        assert (stale.rung, stale.history_length, stale.user_state_cached) == (Rung.STALE_STATE, 1, True)
        assert stale.rung_reason == "the feature store is down"
        assert full.rung is Rung.FULL
        while not recorder.counts["read skipped"]:
            other = await ranker.rank(request(world.schema, "ida", ALL, budget_s=5.0))
            assert (other.rung, other.history_length) == (Rung.SHORT_HISTORY, 0)
        failed = recorder.counts["read failed"]
        assert failed >= OPTIONS.store_failures
        await asyncio.gather(*(ranker.rank(request(world.schema, "ida", ALL, budget_s=5.0)) for _ in range(4)))
        assert (recorder.counts["read failed"], recorder.counts["read skipped"]) == (failed, 5)

    play(scenario)


class SlowStore:
    """The real store behind a gate that can be shut: reads hang until it opens or their time is over."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.gate.set()
        self.shut_after = -1  # reads until the gate shuts by itself; negative: never

    async def read_rank_inputs(
        self, user_id: str, item_keys: NDArray[np.int64], timeout_s: float, *, with_user: bool = True
    ) -> RankInputs:
        if self.shut_after == 0:
            self.gate.clear()
        self.shut_after -= 1
        try:
            await asyncio.wait_for(self.gate.wait(), timeout_s)
        except TimeoutError as error:
            raise StoreUnavailable("store: read: the gate is shut") from error
        return await self._store.read_rank_inputs(user_id, item_keys, timeout_s, with_user=with_user)

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        return await self._store.record_events(events)


def test_slow_store_is_left_behind_and_used_again_when_it_recovers(play: Any) -> None:
    async def scenario(world: World) -> None:
        store = SlowStore(world.store)
        options = OPTIONS.model_copy(update={"store_timeout_s": 0.02, "store_failures": 1, "store_retry_s": 0.01})
        ranker, _ = await world.ranker(options, store=store)  # type: ignore[arg-type]
        store.gate.clear()
        slow = await ranker.rank(request(world.schema, "jo", ALL))
        assert slow.rung is Rung.SHORT_HISTORY
        assert slow.rung_reason == "the feature store did not answer within 20 ms"
        store.gate.set()
        await asyncio.sleep(0.02)  # the breaker's own pause
        assert (await ranker.rank(request(world.schema, "jo", ALL))).rung is Rung.FULL

    play(scenario)


def test_hurried_callers_do_not_take_the_store_from_others(play: Any) -> None:
    async def scenario(world: World) -> None:
        store = SlowStore(world.store)
        options = OPTIONS.model_copy(update={"store_timeout_s": 20.0, "store_failures": 3, "store_retry_s": 60.0})
        ranker, recorder = await world.ranker(options, store=store)  # type: ignore[arg-type]
        store.gate.clear()
        hurried = [request(world.schema, "flo", [1], budget_s=0.2) for _ in range(5)]
        await asyncio.gather(*(ranker.rank(r) for r in hurried), return_exceptions=True)
        assert recorder.counts["read failed"] == 5
        store.gate.set()
        assert (await ranker.rank(request(world.schema, "jo", ALL))).rung is Rung.FULL
        assert recorder.counts["read skipped"] == 0

    play(scenario)


def test_one_read_probes_a_store_that_hangs(play: Any) -> None:
    async def scenario(world: World) -> None:
        store = SlowStore(world.store)
        options = OPTIONS.model_copy(update={"store_timeout_s": 0.05, "store_failures": 1, "store_retry_s": 0.2})
        ranker, recorder = await world.ranker(options, store=store)  # type: ignore[arg-type]
        store.gate.clear()
        await ranker.rank(request(world.schema, "jo", ALL))
        while recorder.counts["read failed"] < 2:  # the first probe, whenever the pause is over
            await asyncio.gather(*(ranker.rank(request(world.schema, "jo", ALL)) for _ in range(8)))
        assert recorder.counts["read failed"] == 2, "the other seven of its round went on without the store"

    play(scenario)


def test_a_failed_repetition_keeps_what_was_read_before(play: Any) -> None:
    async def scenario(world: World) -> None:
        store = SlowStore(world.store)
        options = OPTIONS.model_copy(update={"store_timeout_s": 0.5, "read_your_writes_s": 5.0})
        ranker, recorder = await world.ranker(options, store=store)  # type: ignore[arg-type]
        await ranker.record_events([click(world.schema, "ned", 3, "n1")])
        store.shut_after = 1
        result = await ranker.rank(request(world.schema, "ned", ALL, min_version=10**15))
        assert (result.rung, result.history_length) == (Rung.STALE_STATE, 1)
        assert "is not visible yet" in result.rung_reason
        assert (recorder.counts["read ok"], recorder.counts["read failed"]) == (1, 1)

    play(scenario)


def test_version_that_is_not_visible_yet_is_flagged(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker()
        result = await ranker.rank(request(world.schema, "kim", ALL, min_version=10**15))
        assert result.rung is Rung.STALE_STATE
        assert "is not visible yet" in result.rung_reason
        assert recorder.counts["read ok"] > 1

    play(scenario)


class Watched:
    """The real engine; keeps what the last scoring was given."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.precision, self.device_peak_flops = engine.name, engine.precision, engine.device_peak_flops
        self.scored: dict[str, NDArray[Any]] = {}
        self.armed = False

    def open_session(self) -> Session:
        session, outer = self._engine.open_session(), self

        class WatchedSession:
            fault = ""

            def prepare(self, graph: str, inputs: Tensors) -> None:
                session.prepare(graph, inputs)

            def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
                if outer.armed and graph == SCORE_CANDIDATES:
                    outer.scored = {name: np.array(tensor) for name, tensor in inputs.items()}
                return session.run(graph, inputs)

        return WatchedSession()

    def close(self) -> None:
        self._engine.close()


class Always(Ladder):
    """Answers in one way, whatever the pressure."""

    def __init__(self, way: Way) -> None:
        super().__init__(default_frontier(), 0.5, 1.0)
        self._way = way

    def choose(self, costs: Costs, wait_s: float, budget_s: float, weight: float = 1.0) -> Way:
        return self._way


def test_affinities_are_those_of_the_histories_that_the_state_was_made_of(play: Any) -> None:
    async def scenario(world: World) -> None:
        schema, encoder, engine = world.schema, world.artifact.encoder, Watched(world.engine)
        options = OPTIONS.model_copy(update={"encode_on_write": False, "store_timeout_s": 0.3, "store_retry_s": 60.0})
        ranker, _ = await world.ranker(options, engine=engine)
        await warmed(ranker)
        engine.armed = True
        now = 1_800_000_000_000
        nothing = {e.name: missing_records(event_dtype(e), 0) for e in schema.events}

        async def visit(films: range) -> None:
            shown = [impression(schema, "ann", n, f"i{n}", time_ms=now - 9_000_000 + n * 1_000) for n in films]
            clicks = [click(schema, "ann", n, f"c{n}", time_ms=now - 9_000_000 + n * 1_000 + 500) for n in films[::3]]
            await ranker.record_events([*shown, *clicks])

        async def visible() -> dict[str, Records]:
            stored = (await world.store.read_rank_inputs("ann", ALL, 5.0)).histories
            return {e.name: visible_history(stored[e.name], e, now) for e in schema.events}

        async def served() -> tuple[Rung, bytes]:
            result = await ranker.rank(request(schema, "ann", ALL, budget_s=5.0, now_ms=now))
            items = engine.scored["item_dense"][: len(ALL), -len(encoder.layout.item.affinities) :]
            context = engine.scored["context_dense"][0, -len(encoder.layout.context.affinities) :]
            return result.rung, items.tobytes() + context.tobytes()

        stored = (await world.store.read_rank_inputs("ann", ALL, 5.0)).items

        def offline(histories: dict[str, Records]) -> bytes:
            rows = encoder.encode_items(ALL, stored).rows
            found = encoder.encode_affinities(rows, encoder.affinity_record(histories))
            return found.items.tobytes() + found.context.tobytes()

        await visit(range(1, 13))
        before = await visible()
        assert await served() == (Rung.FULL, offline(before))
        await visit(range(13, 31))
        after = await visible()
        short = {event: history[-8:] for event, history in after.items()}
        assert [len(after[e.name]) for e in schema.events] == [10, 30]
        assert len({offline(h) for h in (before, after, short, nothing)}) == 4
        ladder = ranker._ladder
        ranker._ladder = Always(Way(0.0, 0.1, Rung.STALE_STATE, stale=True))
        assert await served() == (Rung.STALE_STATE, offline(before))
        ranker._ladder = Always(Way(0.0, 0.1, Rung.SHORT_HISTORY, history_share=0.125))
        assert await served() == (Rung.SHORT_HISTORY, offline(short))
        ranker._ladder = ladder
        world.store.server.close()
        assert await served() == (Rung.STALE_STATE, offline(before))

    play(scenario)


class Tampered:
    """The real engine, whose scores pass through `change`."""

    def __init__(self, engine: Engine, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self._engine, self._change = engine, change
        self.name, self.precision, self.device_peak_flops = engine.name, engine.precision, engine.device_peak_flops
        self.armed = False

    def open_session(self) -> Session:
        session, outer = self._engine.open_session(), self

        class TamperedSession:
            fault = ""

            def prepare(self, graph: str, inputs: Tensors) -> None:
                session.prepare(graph, inputs)

            def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
                outputs = session.run(graph, inputs)
                if outer.armed and graph == SCORE_CANDIDATES:
                    outputs[PROBABILITIES] = outer._change(outputs[PROBABILITIES])
                return outputs

        return TamperedSession()

    def close(self) -> None:
        self._engine.close()


def _nan(scores: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.arange(len(scores))[:, None] == 3, np.nan, scores)


def _broken(_: NDArray[Any]) -> NDArray[Any]:
    raise OSError("no device")


@pytest.mark.parametrize(
    ("change", "reason"), [(_nan, "the model's scores were not finite"), (_broken, "the engine failed: OSError")]
)
def test_bad_scores_never_leave(play: Any, change: Any, reason: str) -> None:
    async def scenario(world: World) -> None:
        engine = Tampered(world.engine, change)
        ranker, _ = await world.ranker(engine=engine)
        engine.armed = True
        result = await ranker.rank(request(world.schema, "lee", [1, 2, 3, 4, 9999]))
        assert (result.rung, result.rung_reason) == (Rung.PRIOR, reason)
        prior = world.artifact.prior
        expected = np.vstack([prior["rates"][:4], prior["default"][None]])
        assert np.array_equal(by_candidate(result), expected)
        engine.armed = False
        assert (await ranker.rank(request(world.schema, "lee", [1, 2]))).rung is Rung.FULL

    play(scenario)


def test_full_queue_refuses_with_advice_and_spent_deadlines_at_once(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker(OPTIONS.model_copy(update={"max_queue": 2}))
        results = await asyncio.gather(
            *(ranker.rank(request(world.schema, f"m{i}", ALL)) for i in range(5)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, Overloaded)]
        assert len(refused) == 3
        assert all(r.retry_after_s > 0 and "the limit is 2" in str(r) for r in refused)
        batches = len(recorder.batches)
        with pytest.raises(DeadlineExpired, match="cannot suffice for 100 candidate"):
            await ranker.rank(request(world.schema, "m0", ALL, budget_s=-1.0))
        assert len(recorder.batches) == batches
        assert (recorder.counts["overloaded"], recorder.counts["deadline"], recorder.counts["ranked"]) == (3, 1, 2)

    play(scenario)


def test_what_one_replica_has_acknowledged_another_reads(play: Any) -> None:
    async def scenario(world: World) -> None:
        (one, _), (other, _) = await world.ranker(), await world.ranker()

        async def visit(user: str) -> None:
            for number in range(10):
                writer, reader = (one, other) if number % 2 else (other, one)
                recorded = await writer.record_events([click(world.schema, user, number + 1, f"{user}-{number}")])
                asked = request(world.schema, user, [1, 2, 3], min_version=recorded.versions[user])
                result = await reader.rank(asked)
                assert (result.rung, result.history_length) == (Rung.FULL, number + 1)

        await asyncio.gather(*(visit(f"visitor{i}") for i in range(10)))

    play(scenario)


def test_a_forgotten_user_starts_anew(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        await ranker.record_events([click(world.schema, "una", 1, "una-1")])
        before = await ranker.rank(request(world.schema, "una", [1, 2, 3]))
        assert before.history_length == 1
        assert await ranker.forget_user("una")
        assert ranker._states.newest_of("una") is None
        after = await ranker.rank(request(world.schema, "una", [1, 2, 3]))
        assert (after.history_length, after.user_state_cached, after.rung) == (0, False, Rung.FULL)
        assert not await ranker.forget_user("una")

    play(scenario)


def test_other_replicas_drop_the_states_of_a_forgotten_user(play: Any) -> None:
    async def scenario(world: World) -> None:
        (one, _), (other, _) = await world.ranker(), await world.ranker()
        for user in ("liv", "max"):
            await other.rank(request(world.schema, user, [1, 2, 3]))
        changes = StoreChanges(world.store, other)
        listening = asyncio.create_task(changes.run())
        try:
            await until(lambda: changes.is_live)
            await one.forget_user("liv")
            await until(lambda: other._states.newest_of("liv") is None)
            assert other._states.newest_of("max") is not None
        finally:
            listening.cancel()

    play(scenario)


def test_changed_item_features_are_read_again_and_stale_ones_in_the_background(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker(OPTIONS.model_copy(update={"item_ttl_s": 0.05, "item_stale_s": 30.0}))
        items = list(range(1, 9))

        async def misses() -> int:
            before = recorder.counts["item miss"]
            await ranker.rank(request(world.schema, "vic", items))
            return recorder.counts["item miss"] - before

        assert await misses() == len(items)
        assert await misses() == 0
        await asyncio.sleep(0.06)
        assert await misses() == 0, "stale rows still serve"
        while ranker._reader._refresh is not None:
            await asyncio.sleep(0.001)
        ranker.items_changed(np.array([3, 4]))
        assert await misses() == 2
        ranker.items_changed(None)
        assert await misses() == len(items)

    play(scenario)


def test_user_features_are_cached_until_they_change(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker(OPTIONS.model_copy(update={"store_timeout_s": 0.3}))
        age = missing_records(feature_dtype(world.schema.user), 1)

        async def scores() -> NDArray[np.float32]:
            return by_candidate(await ranker.rank(request(world.schema, "una", ALL, budget_s=5.0)))

        async def put(years: float) -> None:
            age["age"] = years
            await world.store.put_users(["una"], age)

        none = await scores()
        await put(20.0)
        assert np.array_equal(await scores(), none), "that there were no features is cached, too"
        ranker.users_changed({user_hash("somebody else")})
        assert np.array_equal(await scores(), none)
        assert (recorder.counts["user hit"], recorder.counts["user miss"]) == (2, 1)
        ranker.users_changed({user_hash("una")})
        twenty = await scores()
        assert not np.array_equal(twenty, none)
        await put(60.0)
        ranker.features_doubted()
        sixty = await scores()
        assert not np.array_equal(sixty, twenty)
        ranker.features_doubted()
        world.store.server.close()
        down = await ranker.rank(request(world.schema, "una", ALL, budget_s=5.0))
        assert down.rung is not Rung.FULL
        assert np.array_equal(by_candidate(down), sixty), "the last known ones serve while the store is down"
        await asyncio.gather(ranker.forget_user("una"), return_exceptions=True)
        ranker.users_forgotten({user_hash("una")})
        assert np.array_equal(await scores(), none), "but not those of a user who was deleted"

    play(scenario)


def test_lower_priorities_are_refused_first(play: Any) -> None:
    async def scenario(world: World) -> None:
        engine = Gated(world.engine)
        ranker, recorder = await world.ranker(OPTIONS.model_copy(update={"degrade": False}), engine=engine)
        await warmed(ranker)
        await ranker.rank(request(world.schema, "pat", ALL))
        engine.gate.clear()
        waiting = [asyncio.create_task(ranker.rank(request(world.schema, "pat", ALL, budget_s=60.0))) for _ in range(40)]
        [slot] = ranker._scheduler._dispatcher._slots
        while not engine.waiting or len(slot.held) < 2 or recorder.depth < 40 - sum(len(h.batch.pieces) for h in slot.held):
            await asyncio.sleep(0.001)  # until one batch runs, one was handed ahead, and all others wait
        ranker._host_time.stop()
        ranker._host_time.lag_s = ranker._host_time.per_request_s = 0.0  # the loop's own queue is not what this is about
        for share, expected in (
            (0.4, set()),
            (0.6, {Priority.LOW}),
            (0.9, {Priority.LOW, Priority.NORMAL}),
            (1.1, set(Priority)),
        ):
            refused = set()
            for priority in Priority:
                asked = request(world.schema, "pat", [1], budget_s=ranker._scheduler.drain_s() / share)
                try:
                    ranker._admit(replace(asked, priority=priority))
                except Overloaded:
                    refused.add(priority)
            assert refused == expected, f"the queue needs {share} of the time"
        engine.gate.set()
        await asyncio.gather(*waiting)

    play(scenario)


def test_cancelled_requests_leave_nothing_behind(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, recorder = await world.ranker(OPTIONS.model_copy(update={"store_timeout_s": 20.0}))  # however slow this machine
        tasks = [asyncio.create_task(ranker.rank(request(world.schema, f"n{i}", ALL))) for i in range(30)]
        while recorder.counts["read ok"] < 30:
            await asyncio.sleep(0.0005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ranker.rank(request(world.schema, "other", ALL))
        assert recorder.encodes() < 30
        assert ranker._in_flight == 0
        assert ranker._scheduler.drain_s() == 0.0

    play(scenario)


class Gated:
    """The real engine, whose runs wait until the gate opens."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.precision, self.device_peak_flops = engine.name, engine.precision, engine.device_peak_flops
        self.waiting = 0  # runs that stand before the gate
        self.gate = threading.Event()
        self.gate.set()

    def open_session(self) -> Session:
        session, outer = self._engine.open_session(), self

        class GatedSession:
            fault = ""

            def prepare(self, graph: str, inputs: Tensors) -> None:
                session.prepare(graph, inputs)

            def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
                outer.waiting += 1
                assert outer.gate.wait(30)
                outer.waiting -= 1
                return session.run(graph, inputs)

        return GatedSession()

    def close(self) -> None:
        self._engine.close()


async def warmed(ranker: Ranker) -> None:
    """Until no slot has spare work left, which a closed gate would hold up."""
    while ranker._scheduler.cold_shapes:
        await asyncio.sleep(0.005)


def test_cancelled_ranks_are_neither_scored_nor_waited_for(play: Any) -> None:
    async def scenario(world: World) -> None:
        engine = Gated(world.engine)
        ranker, recorder = await world.ranker(engine=engine)
        await warmed(ranker)
        await ranker.rank(request(world.schema, "mo", ALL))
        scored = recorder.rows(SCORE_CANDIDATES)
        engine.gate.clear()
        patient = request(world.schema, "mo", ALL, budget_s=60.0)  # nobody is degraded, however slow this machine is
        [slot] = ranker._scheduler._dispatcher._slots

        def submitted() -> int:
            return recorder.depth + sum(len(held.batch.pieces) for held in slot.held)

        tasks = [asyncio.create_task(ranker.rank(patient)) for _ in range(39)]
        while not engine.waiting or len(slot.held) < 2 or submitted() < 39:
            await asyncio.sleep(0.001)  # until one batch runs, one was handed ahead, and all others wait
        tasks.append(asyncio.create_task(ranker.rank(patient)))  # the last of all
        while submitted() < 40:
            await asyncio.sleep(0.001)
        wait_s = ranker._scheduler.drain_s()
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.gather(*tasks[:-1], return_exceptions=True)
        assert recorder.depth == 1
        assert ranker._scheduler.drain_s() < wait_s / 4, "only what the slot holds and the live request are left"
        engine.gate.set()
        assert (await tasks[-1]).rung is Rung.FULL
        assert recorder.rows(SCORE_CANDIDATES) - scored == 2 * len(ALL), "the batch that ran already, and the live request"
        assert ranker._scheduler.drain_s() == 0.0

    play(scenario)


def test_queue_time_includes_the_wait_of_the_encode(play: Any) -> None:
    async def scenario(world: World) -> None:
        engine = Gated(world.engine)
        ranker, recorder = await world.ranker(engine=engine)
        await warmed(ranker)
        engine.gate.clear()
        first = asyncio.create_task(ranker.rank(request(world.schema, "quinn", ALL)))
        while recorder.counts["miss"] < 1:
            await asyncio.sleep(0)
        began = time.monotonic()
        second = asyncio.create_task(ranker.rank(request(world.schema, "rae", ALL)))
        while recorder.counts["miss"] < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)  # the wait that must show
        engine.gate.set()
        times = (await second).times
        total = time.monotonic() - began
        assert (await first).rung is Rung.FULL
        assert 0.1 <= times.queue_s <= total
        assert times.store_s + times.queue_s + times.encode_s + times.score_s <= total
        again = await ranker.rank(request(world.schema, "rae", ALL))
        assert again.user_state_cached
        assert again.times.queue_s < 0.1, "a cached state was waited for by others"

    play(scenario)


def test_drain_answers_what_is_in_flight_and_refuses_the_rest(play: Any) -> None:
    async def scenario(world: World) -> None:
        ranker, _ = await world.ranker()
        running = [asyncio.create_task(ranker.rank(request(world.schema, f"p{i}", ALL))) for i in range(5)]
        await asyncio.sleep(0)
        await ranker.drain()
        assert all(task.done() and task.exception() is None for task in running)
        with pytest.raises(Unready, match="starting or stopping"):
            await ranker.rank(request(world.schema, "p9", ALL))

    play(scenario)


def test_a_ranker_whose_closing_is_cut_short_still_ends_its_slots(play: Any) -> None:
    """The engine is closed next, whose sessions must not be running."""

    async def scenario(world: World) -> None:
        ranker = Ranker(world.artifact, world.engine, world.store, OPTIONS, Recorder())
        await ranker.start()
        ranker._idle.clear()  # as with a request in flight
        closing = asyncio.create_task(ranker.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not any(slot._thread.is_alive() for slot in ranker._scheduler._slots)

    play(scenario)


def test_the_core_and_the_engine_need_no_torch() -> None:
    modules = "serving.core.ranker, serving.engines.open, serving.engines.openvino_engine, serving.cli.compile"
    code = f"import sys, {modules}; found = {{'torch', 'grpc'}} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
