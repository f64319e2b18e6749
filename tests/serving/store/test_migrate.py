"""Moving records to another schema's layouts: nothing is lost or doubled, beside live servers of both, and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import yaml
from numpy.typing import NDArray
from store_fixtures import SCHEMA, cluster, embedded

from kunlun.cli import main
from model.config import ConfigError
from model.records import Records, event_dtype, feature_dtype
from model.schema import Schema
from serving.core.types import UserEvent
from serving.store.migrate import Migration, merge_histories
from serving.store.open import open_store
from serving.store.redis_store import RedisOptions, RedisStore

ITEMS = np.array([1, 2])


def changed(**changes: Any) -> Schema:
    return Schema.model_validate(SCHEMA.model_dump() | changes)


def new_schema() -> Schema:
    """Clicks know a `volume` and no longer a `dwell`; genres are fewer, prices are gone, users have a `height`."""
    events = [event | {} for event in SCHEMA.model_dump()["events"]]
    events[0]["attributes"] = [{"name": "volume", "kind": "numeric"}]
    return changed(
        events=events,
        user=[{"name": "age", "kind": "numeric"}, {"name": "height", "kind": "numeric"}],
        item_features=[{"name": "genres", "kind": "multi", "table": "genre", "max_values": 2}],
    )


OLD, NEW = SCHEMA, new_schema()


def click(schema: Schema, event_id: str, user: str, item: int, arrival_ms: int, kind: str = "click") -> UserEvent:
    record = np.zeros(1, event_dtype(schema.event(kind)))
    record["item"], record["time_ms"], record["arrival_ms"] = item, 1000 + item, arrival_ms
    return UserEvent(event_id, user, kind, record)


async def clicks(store: RedisStore, user: str) -> Records:
    return (await store.read_rank_inputs(user, np.empty(0, np.int64), 1.0)).histories["click"]


Scenario = Callable[[RedisStore, RedisStore], Awaitable[None]]


def run(scenario: Scenario, url: str, **options: Any) -> None:
    async def whole() -> None:
        old, new = [await open_store(url, schema, options=RedisOptions(**options)) for schema in (OLD, NEW)]
        try:
            await scenario(old, new)
        finally:
            await old.close()
            await new.close()

    asyncio.run(whole())


@pytest.mark.parametrize("kind", ["embedded", "cluster"])
def test_everything_moves_once(kind: str, tmp_path: Path) -> None:
    async def scenario(old: RedisStore, new: RedisStore) -> None:
        users = [f"u{n}" for n in range(60)]
        for user in users:
            await old.backfill_events([click(OLD, f"{user}-{n}", user, n + 1, 10 * n) for n in range(5)])
        await old.record_events([click(OLD, "seen", "u0", 77, 0, "impression")])
        ages = np.zeros(60, feature_dtype(OLD.user))
        ages["age"] = np.arange(60)
        await old.put_users(users, ages)
        items = np.zeros(2, feature_dtype(OLD.item_features))
        items["genres"], items["price"] = [[5, 6, 7], [8, 9, 10]], [1.5, 2.5]
        await old.put_items(ITEMS, items)
        newer = np.zeros(1, feature_dtype(NEW.item_features))
        newer["genres"] = [[1, 2]]
        await new.put_items(ITEMS[1:], newer)

        looked_at: list[int] = []
        report = await Migration(new, OLD).run(looked_at.append)
        assert (report.histories, report.users, report.items, report.unreadable) == (60, 60, 1, 0)
        assert report.left_out == ["events.click.dwell", "item_features.price"]
        assert looked_at
        for number in (0, 31, 59):
            inputs = await new.read_rank_inputs(f"u{number}", ITEMS, 1.0)
            assert inputs.histories["click"]["item"].tolist() == [1, 2, 3, 4, 5]
            assert inputs.histories["click"]["arrival_ms"].tolist() == [0, 10, 20, 30, 40]
            assert np.isnan(inputs.histories["click"]["volume"]).all()
            assert inputs.user is not None
            assert inputs.user["age"].tolist() == [number]
            assert np.isnan(inputs.user["height"]).all()
            assert inputs.items["genres"].tolist() == [[5, 6], [1, 2]], "what was put since is newer"
        assert len((await new.read_rank_inputs("u0", ITEMS, 1.0)).histories["impression"]) == 1, "of one layout in both"

        versions = [(await new.read_rank_inputs(u, ITEMS, 1.0)).history_version for u in users]
        again = await Migration(new, OLD).run()
        assert (again.histories, again.users, again.items) == (0, 0, 0)
        assert versions == [(await new.read_rank_inputs(u, ITEMS, 1.0)).history_version for u in users]
        assert len(await clicks(old, "u0")) == 5, "servers of the old schema go on"

    with embedded() if kind == "embedded" else cluster(tmp_path) as url:
        run(scenario, url)


def test_what_servers_of_both_schemas_store_meanwhile_is_merged() -> None:
    async def scenario(old: RedisStore, new: RedisStore) -> None:
        await old.backfill_events([click(OLD, "a", "ann", 1, 10), click(OLD, "b", "ann", 2, 20)])
        await Migration(new, OLD).run()
        await new.backfill_events([click(NEW, "c", "ann", 3, 30)])
        await old.backfill_events([click(OLD, "d", "ann", 4, 40)])
        await new.backfill_events([click(NEW, "e", "ann", 5, 50)])
        await old.backfill_events([click(OLD, "c", "ann", 3, 60)])  # its first answer was lost, so the app sent it again
        await Migration(new, OLD).run()
        assert (await clicks(new, "ann"))["item"].tolist() == [1, 2, 3, 4, 5]
        assert (await clicks(new, "ann"))["arrival_ms"].tolist() == [10, 20, 30, 40, 50]

    with embedded() as url:
        run(scenario, url)


def test_an_event_that_comes_between_reading_and_writing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(old: RedisStore, new: RedisStore) -> None:
        await old.backfill_events([click(OLD, "a", "ann", 1, 10)])
        run_script, raced = new.run_script, 0

        async def late(*arguments: Any) -> Any:
            nonlocal raced
            raced += 1
            if raced <= 2:
                await new.backfill_events([click(NEW, f"b{raced}", "ann", 10 + raced, 100 * raced)])
            return await run_script(*arguments)

        monkeypatch.setattr(new, "run_script", late)
        report = await Migration(new, OLD).run()
        assert raced == 3
        assert report.histories == 1
        assert (await clicks(new, "ann"))["item"].tolist() == [1, 11, 12]

    with embedded() as url:
        run(scenario, url)


def test_histories_live_as_long_as_before_and_old_ones_can_go() -> None:
    async def scenario(old: RedisStore, new: RedisStore) -> None:
        await old.record_events([click(OLD, "a", "ann", 1, 0)])
        report = await Migration(new, OLD, delete_old=True).run()
        assert report.histories == 1
        client = redis.Redis.from_url(new.url)
        tag = new.keys.tag("ann")
        left = {name.decode().removeprefix(tag).split(":")[0]: client.ttl(name) for name in client.keys(f"{tag}*")}
        assert set(left) == {"v", "h", "d"}
        assert all(90 < seconds <= 100 for seconds in left.values())
        assert client.keys(old.keys.history(tag, "click")) == []
        client.close()
        assert (await clicks(new, "ann"))["item"].tolist() == [1]
        assert await new.delete_user("ann")

    with embedded() as url:
        run(scenario, url, history_ttl_s=100)


def test_what_is_no_history_is_counted_and_left() -> None:
    async def scenario(old: RedisStore, new: RedisStore) -> None:
        await old.record_events([click(OLD, "a", "ann", 1, 0), click(OLD, "b", "bob", 2, 0)])
        client = redis.Redis.from_url(new.url)
        wrong = old.keys.history(old.keys.tag("ann"), "click")
        client.set(wrong, b"123")
        client.rpush(old.keys.history(old.keys.tag("cat"), "click"), "a list")
        report = await Migration(new, OLD, delete_old=True).run()
        assert (report.histories, report.unreadable) == (1, 2)
        assert client.get(wrong) == b"123"
        client.close()

    with embedded() as url:
        run(scenario, url)


def test_a_log_can_be_loaded_under_another_schema_too() -> None:
    """What remembers repeated events belongs to the layouts: it does not take the new records for repeats of the old."""

    async def scenario(old: RedisStore, new: RedisStore) -> None:
        await old.backfill_events([click(OLD, f"e{n}", "ann", n, n) for n in range(5)])
        loaded = await new.backfill_events([click(NEW, f"e{n}", "ann", n, n) for n in range(5)])
        assert (loaded.stored, loaded.duplicates) == (5, 0)

    with embedded() as url:
        run(scenario, url)


def test_items_of_other_ids_are_refused() -> None:
    store = RedisStore("redis://localhost:1", SCHEMA)
    with pytest.raises(ConfigError, match=r"item\.id_type: expected int64 ids hashed alike in both schemas, found string"):
        Migration(store, changed(item=SCHEMA.item.model_dump() | {"id_type": "string"}))


@pytest.mark.parametrize("seed", range(20))
def test_merging_equals_sorting_all_that_arrived(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = event_dtype(NEW.event("click"))
    whole = np.zeros(30, dtype)
    whole["item"], whole["time_ms"] = rng.permutation(30), rng.integers(0, 5, 30)
    whole["arrival_ms"] = np.sort(rng.choice(1000, 30, replace=False))

    def part(chosen: NDArray[np.bool_]) -> Records:
        return whole[chosen]

    in_old, in_new = rng.random(30) < 0.6, rng.random(30) < 0.6
    merged = merge_histories(part(in_old), part(in_new), 12, [])
    assert merged.tobytes() == part(in_old | in_new)[-12:].tobytes()
    assert merge_histories(part(in_old), merged, 12, []).tobytes() == merged.tobytes(), "merging again changes nothing"


def test_the_command_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, schema in (("old", OLD), ("new", NEW)):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(schema.model_dump(mode="json", exclude_none=True)))

    async def fill(url: str) -> None:
        store = await open_store(url, OLD)
        await store.record_events([click(OLD, "a", "ann", 1, 0)])
        await store.close()

    with embedded() as url:
        asyncio.run(fill(url))
        assert main(["migrate", *map(str, paths), "--store", url, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["histories"], found["left_out"]) == (1, ["events.click.dwell", "item_features.price"])
        assert main(["migrate", *map(str, paths), "--store", url]) == 0
        assert "0 histories written" in capsys.readouterr().out
