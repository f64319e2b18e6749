"""Bulk loading into a real store: bad rows are refused alone, and a second load changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_fixtures import SCHEMA, embedded

from model.records import FieldError
from serving.store.load import STORED_BEFORE, LoadReport, load_events, load_items, load_users
from serving.store.load_journal import LoadJournal
from serving.store.open import open_store
from serving.store.redis_store import RedisStore

NO_ITEMS = np.empty(0, dtype=np.int64)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded() as address:
        yield address


def run(url: str, scenario: Callable[[RedisStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await open_store(url, SCHEMA)
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(main())


def test_bad_items_are_refused_alone(url: str, tmp_path: Path) -> None:
    prices = [float(i) for i in range(1000)]
    prices[123] = prices[777] = float("inf")
    genres: list[list[str] | None] = [["a"], None] * 500
    genres[5] = ["a", "b", "c", "d"]
    ids: list[int | None] = list(range(1000))
    ids[9] = None
    pq.write_table(pa.table({"item_id": ids, "price": prices, "genres": genres}), tmp_path / "items.parquet")
    advanced: list[int] = []

    async def scenario(store: RedisStore) -> None:
        report = await load_items(store, SCHEMA, tmp_path / "items.parquet", advanced.append)
        assert report.loaded == 996
        assert report.rejected == {
            "item_id is null": 1,
            "items.parquet: price: expected finite numbers, found inf": 2,
            "items.parquet: genres: expected at most 3 values per row, found 4": 1,
        }
        assert sum(advanced) == 1000
        read = await store.read_rank_inputs("ann", np.array([5, 9, 122, 123, 124, 999]), 1.0)
        assert read.items_found.tolist() == [False, False, True, False, True, True]
        assert read.items["price"][[2, 4, 5]].tolist() == [122.0, 124.0, 999.0]

    run(url, scenario)


def test_bad_users_are_refused_alone(url: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["ann", "bob", None], "age": [1.0, float("nan"), 3.0]}), tmp_path / "users.parquet")

    async def scenario(store: RedisStore) -> None:
        report = await load_users(store, SCHEMA, tmp_path / "users.parquet")
        assert (report.loaded, sum(report.rejected.values())) == (1, 2)
        assert (await store.read_rank_inputs("ann", NO_ITEMS, 1.0)).user is not None

    run(url, scenario)


def events_file(path: Path, count: int) -> Path:
    """`count` clicks of one user; the third has a bad attribute, the fourth an unknown type, the fifth no id."""
    dwell = [1.0] * count
    dwell[2] = float("inf")
    table = {
        "event_id": [None if i == 4 else f"e{i}" for i in range(count)],
        "user_id": ["eve"] * count,
        "type": ["like" if i == 3 else "click" for i in range(count)],
        "item_id": list(range(count)),
        "time_ms": list(range(count)),
        "arrival_ms": list(range(count)),
        "click.dwell": dwell,
    }
    shuffled = pa.table(table).take(pa.array(np.random.default_rng(0).permutation(count)))
    pq.write_table(shuffled, path)
    return path


def test_loading_events_twice_keeps_the_newest_history(url: str, tmp_path: Path) -> None:
    path, advanced = events_file(tmp_path / "events.parquet", 5000), []

    async def scenario(store: RedisStore) -> None:
        first = await load_events(store, SCHEMA, path, advanced.append)
        before = await store.read_rank_inputs("eve", NO_ITEMS, 1.0)
        second = await load_events(store, SCHEMA, path)
        after = await store.read_rank_inputs("eve", NO_ITEMS, 1.0)
        bad = {
            "event_id is null": 1,
            "events.parquet: click.dwell: expected finite numbers, found inf": 1,
            "event type that the schema does not declare": 1,
        }
        assert first == LoadReport(4997, first.rejected, first._reasons)
        assert first.rejected == bad
        assert (second.loaded, second.rejected) == (0, bad | {STORED_BEFORE: 4997})
        assert sum(advanced) == 5000
        assert before.history_version == after.history_version == 4997
        assert after.histories["click"].tobytes() == before.histories["click"].tobytes()
        assert after.histories["click"]["item"][-1] == 4999

    run(url, scenario)


def test_a_missing_column_is_explained(url: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "items.parquet")

    async def scenario(store: RedisStore) -> None:
        with pytest.raises(FieldError, match=r"items\.parquet: item_id: expected a column, found columns id"):
            await load_items(store, SCHEMA, tmp_path / "items.parquet")

    run(url, scenario)


class Interrupted(Exception):
    """Somebody has pulled the plug."""


def test_an_interrupted_load_goes_on_where_it_stopped(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.store.load.BATCH_ROWS", 100)
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": np.arange(5000, 5950), "price": np.ones(950), "genres": [["a"]] * 950}), path)
    journal = LoadJournal(path, "somewhere")
    assert journal.resume() == 0

    def until_300(rows: int) -> None:
        journal.advance(rows)
        if journal.resume() == 300:
            raise Interrupted

    async def scenario(store: RedisStore) -> None:
        with pytest.raises(Interrupted):
            await load_items(store, SCHEMA, path, until_300)
        assert LoadJournal(path, "elsewhere").resume() == 0, "of another store nothing is known"
        again = LoadJournal(path, "somewhere")
        report = await load_items(store, SCHEMA, path, again.advance, again.resume())
        assert report.loaded == 650
        assert again.resume() == 950
        assert (await store.read_rank_inputs("ann", np.arange(5000, 5950), 5.0)).items_found.all()
        again.done()
        assert LoadJournal(path, "somewhere").resume() == 0

    run(url, scenario)
    LoadJournal(path, "somewhere").advance(10)
    pq.write_table(pa.table({"item_id": [1]}), path)
    assert LoadJournal(path, "somewhere").resume() == 0, "the table is another one"


def test_events_can_be_resumed_in_the_order_of_arrival(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.store.load.EVENT_ROWS", 4)
    path, count = tmp_path / "events.parquet", 12
    columns = {
        "event_id": [f"r{i}" for i in range(count)],
        "user_id": ["resumed"] * 6 + [None] + ["resumed"] * 5,
        "type": ["click"] * count,
        "item_id": np.arange(count),
        "time_ms": np.arange(count)[::-1],
        "arrival_ms": np.arange(count)[::-1],
        "click.dwell": np.ones(count, np.float32),
    }
    pq.write_table(pa.table(columns), path)
    done: list[int] = []

    async def scenario(store: RedisStore) -> None:
        def two_steps(rows: int) -> None:
            done.append(rows)
            if len(done) == 2:
                raise Interrupted

        with pytest.raises(Interrupted):
            await load_events(store, SCHEMA, path, two_steps)
        assert done == [1, 4], "the row without a user, and the first events"
        report = await load_events(store, SCHEMA, path, skip=sum(done))
        assert report.loaded == 7
        read = await store.read_rank_inputs("resumed", NO_ITEMS, 1.0)
        assert read.histories["click"]["item"].tolist() == [i for i in range(count)[::-1] if i != 6]

    run(url, scenario)
