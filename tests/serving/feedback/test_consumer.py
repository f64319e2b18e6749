"""The feedback consumer on real stores: it may die at any moment, and be replaced, and still everything counts once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from feedback_fixtures import ISSUED_MS, SIGNER, TASKS, List, now_ms, offline_sums, served
from store_fixtures import SCHEMA, cluster, embedded, until

from model.metrics.paired_ne import PairedNE, Verdict
from serving.core.errors import StoreUnavailable
from serving.feedback import consumer as consumer_module
from serving.feedback.consumer import SLACK_MS, FeedbackConsumer
from serving.feedback.figures import FigureReader, Maturity
from serving.feedback.ledger import ALL_SLICES, MINUTE_MS
from serving.feedback.outcome import encode_outcome
from serving.feedback.receipt import ServedList, ShadowPredictions
from serving.feedback.sums import COUNTS, Kind, SumKey, Sums, ne_state, paired_ne
from serving.store.feedback_state import Changes, FeedbackState, Place
from serving.store.open import open_store
from serving.store.redis_store import RedisOptions, RedisStore

HOUR_MS = 3_600_000
TOTAL = SumKey(Kind.NE, "click", "v1", ALL_SLICES)
Scenario = Callable[[RedisStore], Awaitable[None]]


def on(url: str, scenario: Scenario, **options: int) -> None:
    async def main() -> None:
        store = await open_store(url, SCHEMA, options=RedisOptions(**options))
        try:
            async with asyncio.timeout(60):
                await scenario(store)
        finally:
            await store.close()

    asyncio.run(main())


def clock_at(at_ms: int) -> Callable[[], Awaitable[int]]:
    async def clock() -> int:
        return at_ms

    return clock


def consumes(store: RedisStore, at_ms: int = ISSUED_MS, lease_s: float = 0.3) -> FeedbackConsumer:
    return FeedbackConsumer(store, HOUR_MS, HOUR_MS, lease_s=lease_s, clock=clock_at(at_ms))


async def figures(store: RedisStore, at_ms: int = ISSUED_MS) -> dict[Maturity, Sums]:
    return (await FigureReader(store, HOUR_MS, clock_at(at_ms)).read()).totals


async def counted(store: RedisStore) -> dict[str, float]:
    vector = (await figures(store))[Maturity.PROVISIONAL].get(SumKey(Kind.COUNTS), np.zeros(len(COUNTS)))
    return dict(zip(COUNTS, vector.tolist(), strict=True))


async def is_counted(store: RedisStore, outcomes: int) -> None:
    while (await counted(store))["outcomes"] < outcomes:
        await asyncio.sleep(0.01)


async def stopped(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def traffic(lists: int, start_ms: int) -> tuple[list[List], list[bytes]]:
    rng, found, reports = np.random.default_rng(7), list[List](), list[bytes]()
    for number in range(lists):
        one = served(6, number, "v1", f"r{number}", start_ms + 500 * number)
        shown = rng.permutation(6)[:4].tolist()
        labels = [(p, t) for p in shown for t in (0, 1) if rng.random() < 0.3]
        found.append((one, shown, labels))
        receipt = SIGNER.sign(one)
        pieces = [encode_outcome(receipt, shown, [], one.issued_ms)]
        pieces += [encode_outcome(receipt, [], [pair], one.issued_ms + 70_000) for pair in labels]
        reports += pieces + pieces[:2]
    random.Random(7).shuffle(reports)
    return found, reports


@pytest.mark.parametrize("kind", ["embedded", "cluster"])
def test_consumers_that_die_and_take_over_count_everything_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "BATCH", 20)
    lists, reports = traffic(150, now_ms())  # behind a backlog time is that of the stream, so of the store

    async def scenario(store: RedisStore) -> None:
        chance = random.Random(3)
        running: list[asyncio.Task[None]] = []
        for start in range(0, len(reports), 40):
            await store.append_outcomes(reports[start : start + 40])
            running.append(asyncio.create_task(consumes(store, now_ms()).run()))
            await asyncio.sleep(chance.random() * 0.05)
            if len(running) > 1:
                dying = running.pop(chance.randrange(len(running)))
                monkeypatch.setattr(FeedbackState, "release", _keep_lease)  # killed, not asked to stop
                await stopped(dying)
                monkeypatch.undo()
                monkeypatch.setattr(consumer_module, "BATCH", 20)
        await is_counted(store, len(reports))
        await stopped(*running)
        found = (await figures(store, now_ms()))[Maturity.PROVISIONAL]
        for key, vector in offline_sums(lists).items():
            assert list(vars(ne_state(found[key])).values()) == pytest.approx(list(vars(ne_state(vector)).values()), rel=1e-9)
        assert (await counted(store))["outcomes"] == len(reports)
        assert (await counted(store))["labels"] == sum(len(labels) for _, _, labels in lists)

    with embedded() if kind == "embedded" else cluster(tmp_path) as url:
        on(url, scenario)


async def _keep_lease(self: FeedbackState) -> None:
    """What a killed process does."""


def test_one_owner_at_a_time_and_a_stopped_one_hands_over_at_once() -> None:
    async def scenario(store: RedisStore) -> None:
        first, second = consumes(store, lease_s=30.0), consumes(store, lease_s=30.0)
        one = asyncio.create_task(first.run())
        await until(lambda: first.is_owner)
        second._lease_s = 0.1  # asks often; the lease that it would take is as long
        two = asyncio.create_task(second.run())
        await asyncio.sleep(0.2)
        assert not second.is_owner
        await stopped(one)
        await until(lambda: second.is_owner)
        await stopped(two)

    with embedded() as url:
        on(url, scenario)


def test_a_commit_that_others_have_overtaken_changes_nothing() -> None:
    async def scenario(store: RedisStore) -> None:
        old, new = FeedbackState(store, 0.05), FeedbackState(store, 30.0)
        assert await old.acquire()
        before = await old.place()
        await asyncio.sleep(0.1)
        assert await new.acquire()
        assert not await old.acquire()
        assert await old.commit(before, Place(0, "9-9", 1), Changes(hashes={"reported": {b"x": b"old"}})) is None
        after = await new.commit(before, Place(0, "5-5", 1), Changes(hashes={"reported": {b"x": b"new"}}))
        assert after == Place(1, "5-5", 1)
        assert await new.commit(before, Place(0, "6-6", 1), Changes()) is None, "told twice"
        assert await new.place() == after
        assert await new.read(["reported"]) == [{b"x": b"new"}]

    with embedded() as url:
        on(url, scenario)


def test_minutes_mature_after_the_window_and_go_after_a_while() -> None:
    async def scenario(store: RedisStore) -> None:
        receipt = SIGNER.sign(served())
        await store.append_outcomes([encode_outcome(receipt, [0, 1], [(1, 0)], ISSUED_MS)])
        end_ms = (ISSUED_MS // MINUTE_MS + 1) * MINUTE_MS + HOUR_MS + SLACK_MS

        async def after(at_ms: int) -> dict[Maturity, Sums]:
            consumer = consumes(store, at_ms)
            task = asyncio.create_task(consumer.run())
            await until(lambda: consumer._place.first_open == (at_ms - HOUR_MS - SLACK_MS) // MINUTE_MS)
            await stopped(task)
            return await figures(store, at_ms)

        assert TOTAL not in (await after(end_ms - 1))[Maturity.MATURED]
        totals = await after(end_ms)
        assert ne_state(totals[Maturity.MATURED][TOTAL]) == ne_state(totals[Maturity.PROVISIONAL][TOTAL])
        assert ne_state(totals[Maturity.MATURED][TOTAL]).examples == 2
        windows = (await FigureReader(store, HOUR_MS, clock_at(end_ms)).read()).windows
        assert ne_state(windows[Maturity.MATURED][TOTAL]).examples == 2
        assert TOTAL not in windows[Maturity.PROVISIONAL], "served more than an hour ago"
        (bitmaps,) = await FeedbackState(store, 1.0).read([f"seen:{ISSUED_MS // MINUTE_MS}"])
        assert not bitmaps
        await store.append_outcomes([encode_outcome(receipt, [2], [], ISSUED_MS)])
        again = await after(end_ms + MINUTE_MS)
        assert ne_state(again[Maturity.MATURED][TOTAL]).examples == 2
        assert (await counted(store))["expired"] == 1
        await after(end_ms + HOUR_MS + MINUTE_MS)
        assert not await FeedbackState(store, 1.0).minutes(0, 10**9)
        assert TOTAL in (await figures(store))[Maturity.MATURED], "counters stay"
        assert TOTAL not in (await after(end_ms + 3 * HOUR_MS + MINUTE_MS))[Maturity.MATURED], "until a version is forgotten"

    with embedded() as url:
        on(url, scenario)


def test_a_canary_is_judged_on_matured_lists() -> None:
    rng, start_ms = np.random.default_rng(11), now_ms()  # behind a backlog time is that of the stream, so of the store
    paired, reports = PairedNE(), list[bytes]()
    for number in range(400):
        p = rng.beta(2, 8, (10, 2)).astype(np.float32)
        worse = np.clip(p * np.exp(rng.normal(0, 0.6, p.shape)), 1e-4, 0.99).astype(np.float32)
        one = ServedList(f"r{number}", start_ms, "v1", "home", 1, np.arange(10), p, TASKS, ShadowPredictions("v2", worse))
        clicks = rng.random(10) < p[:, 0]
        receipt = SIGNER.sign(one)
        reports.append(encode_outcome(receipt, range(10), [], start_ms))
        reports += [encode_outcome(receipt, [], [(at, 0)], start_ms) for at in np.flatnonzero(clicks).tolist()]
        paired += PairedNE.of(p[:, 0], worse[:, 0], clicks, np.zeros(10, int))

    async def scenario(store: RedisStore) -> None:
        await store.append_outcomes(reports)
        for at_ms in (start_ms, start_ms + HOUR_MS + SLACK_MS + 2 * MINUTE_MS):
            task = asyncio.create_task(consumes(store, at_ms).run())
            await is_counted(store, len(reports))
            key = SumKey(Kind.CANARY, "click", "v1", "v2")
            if at_ms > start_ms:
                while key not in (await figures(store))[Maturity.MATURED]:
                    await asyncio.sleep(0.01)
                found = paired_ne((await figures(store))[Maturity.MATURED][key])
                assert list(vars(found).values()) == pytest.approx(list(vars(paired).values()), rel=1e-9)
                assert found.ne_difference().verdict is Verdict.WORSE
            else:
                assert key not in (await figures(store))[Maturity.MATURED], "its labels may still come"
            await stopped(task)

    with embedded() as url:
        on(url, scenario)


def test_nothing_that_was_acknowledged_is_dropped_to_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(store: RedisStore) -> None:
        report = encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS)
        await store.append_outcomes([report] * 600)
        with pytest.raises(StoreUnavailable, match="BACKLOG 600 outcomes are kept or wait: is there a feedback consumer"):
            await store.append_outcomes([report])
        task = asyncio.create_task(consumes(store).run())
        await is_counted(store, 600)
        while True:  # what is counted makes room; a stream is cut by whole blocks
            try:
                await store.append_outcomes([report])
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
        await is_counted(store, 601)
        await stopped(task)

    with embedded() as url:
        on(url, scenario, outcomes_kept=300)


def test_a_busy_stream_is_cut_while_it_is_read_and_what_waits_stays() -> None:
    async def scenario(store: RedisStore) -> None:
        report = encode_outcome(SIGNER.sign(served(issued_ms=now_ms())), [0], [], now_ms())
        await store.append_outcomes([report] * 1000)
        state = FeedbackState(store, 5.0)
        assert await state.acquire()
        entries = await store.read_outcomes("0", 700, 10)
        assert await state.commit(Place(), Place(0, entries[-1][0]), Changes(), 700) is not None
        (left,) = await store.execute([("XLEN", store.keys.outcomes)], "test")
        assert 300 + 500 <= left < 1000, "300 wait, 500 are kept, and a block at most beside them"
        waiting = await store.read_outcomes(entries[-1][0], 1000, 10)
        assert len(waiting) == 300

    with embedded() as url:
        on(url, scenario, outcomes_kept=500)


def test_when_nobody_counts_the_oldest_make_room() -> None:
    async def scenario(store: RedisStore) -> None:
        report = encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS)
        for _ in range(20):
            await store.append_outcomes([report] * 100)
        (left,) = await store.execute([("XLEN", store.keys.outcomes)], "test")
        assert 300 <= left < 700

    with embedded() as url:
        on(url, scenario, outcomes_kept=300, outcomes_counted=False)


def test_a_machine_with_a_wrong_clock_matures_nothing_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(store: RedisStore) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: (now_ms() + 86_400_000) * 1_000_000)
        consumer = FeedbackConsumer(store, HOUR_MS, HOUR_MS, lease_s=0.3)
        task = asyncio.create_task(consumer.run())
        await until(lambda: consumer._place.first_open > 0)
        monkeypatch.undo()
        await store.append_outcomes([encode_outcome(SIGNER.sign(served(issued_ms=now_ms())), [0], [], now_ms())])
        await is_counted(store, 1)
        assert (await counted(store))["expired"] == 0
        await stopped(task)

    def now_ms(read: Callable[[], int] = time.time_ns) -> int:
        return read() // 1_000_000

    with embedded() as url:
        on(url, scenario)


def test_errors_of_any_kind_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(store: RedisStore) -> None:
        await store.append_outcomes([encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS)])
        await store.execute([("SET", store.keys.feedback + "reported", "not a hash")], "test")
        reader = FigureReader(store, HOUR_MS, clock_at(ISSUED_MS))
        monkeypatch.setattr("serving.feedback.figures.REFRESH_S", 0.01)
        tasks = [asyncio.create_task(consumes(store).run()), asyncio.create_task(reader.run())]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in tasks)
        assert reader.figures is None, "what is not known is not exported"
        await store.execute([("UNLINK", store.keys.feedback + "reported")], "test")
        await is_counted(store, 1)
        while reader.figures is None:
            await asyncio.sleep(0.01)
        await stopped(*tasks)

    with embedded() as url:
        on(url, scenario)


def test_foreign_entries_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "BATCH", 5)

    async def scenario(store: RedisStore) -> None:
        await store.execute([("XADD", store.keys.outcomes, "*", "x", "y")] * 12, "test")
        await store.append_outcomes([encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS)])
        task = asyncio.create_task(consumes(store).run())
        await is_counted(store, 1)
        assert (await counted(store))["unreadable"] == 12
        await stopped(task)

    with embedded() as url:
        on(url, scenario)


def test_how_long_outcomes_wait_is_known_without_any_consumer() -> None:
    async def scenario(store: RedisStore) -> None:
        state = FeedbackState(store, 1.0)
        assert await state.waiting_ms(await state.place()) == 0
        await store.append_outcomes([encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS)])
        await asyncio.sleep(0.05)
        assert await state.waiting_ms(await state.place()) >= 50

    with embedded() as url:
        on(url, scenario)


def test_missing_replicas_of_a_cluster_are_an_error_of_the_store(tmp_path: Path) -> None:
    async def scenario(store: RedisStore) -> None:
        with pytest.raises(StoreUnavailable, match="written, but 0 of 1 replicas had it"):
            await store.append_outcomes([encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS)])

    with cluster(tmp_path) as url:
        on(url, scenario, replicas=1)


def test_entries_that_are_no_outcomes_and_a_store_that_restarts_are_survived(tmp_path: Path) -> None:
    async def main() -> None:
        store = await open_store("embedded", SCHEMA, data_dir=tmp_path)
        await store.append_outcomes([encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS), b"junk"])
        task = asyncio.create_task(consumes(store).run())
        async with asyncio.timeout(20):
            await is_counted(store, 1)
        assert (await counted(store))["unreadable"] == 1
        await stopped(task)
        await store.close()
        store = await open_store("embedded", SCHEMA, data_dir=tmp_path)
        task = asyncio.create_task(consumes(store).run())
        await store.append_outcomes([encode_outcome(SIGNER.sign(served()), [0, 1], [(1, 0)], ISSUED_MS)])
        async with asyncio.timeout(20):
            await is_counted(store, 2)
        state = ne_state((await figures(store))[Maturity.PROVISIONAL][TOTAL])
        assert (state.examples, state.positives) == (2, 1)
        await stopped(task)
        await store.close()

    asyncio.run(main())
