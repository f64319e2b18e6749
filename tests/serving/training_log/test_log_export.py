"""`kunlun log export`: what was served and reported comes out as the log it would have been, row by row."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_model import serve
from test_served_log import Counts, random_entry

from kunlun.cli import UsageError
from kunlun.client import Client, Event, Outcome
from model.artifact import Artifact
from model.config import ConfigError
from model.data.canonical import LogFile, write_log
from model.data.request_log import RequestLog, load_request_log
from model.hashing import string_key
from model.records import ARRIVAL_MS, feature_dtype, missing_records
from model.schema import Schema
from serving.cli.log import command
from serving.core.options import CoreOptions
from serving.core.ranker import Ranker
from serving.core.types import CandidateBlock, RankRequest
from serving.engines.open import open_engine
from serving.feedback.outcome import encode_outcome
from serving.feedback.receipt import ReceiptSigner, ServedList
from serving.store.keys import served_key
from serving.store.load import load_events, load_items, load_users
from serving.store.open import EMBEDDED, open_store
from serving.store.redis_store import RedisOptions, RedisStore
from serving.training_log.export import export_log
from serving.training_log.join import ExportOptions, Reason
from serving.training_log.served_log import ServedLogFormat
from serving.training_log.served_writer import ServedLog
from tests.serving.core.rank_fixtures import SilentObserver

HOUR = 3_600_000
START = 1_767_225_600_000
OPTIONS = CoreOptions(max_batch_candidates=320, max_batch_users=2, max_batch_requests=4, user_ttl_s=600, item_ttl_s=600)
SIGNER = ReceiptSigner({0: b"k" * 32}, 0)
ALL = ExportOptions(window_ms=HOUR, now_ms=START + 10_000 * HOUR)


def write_world(directory: Path, schema: Schema, rng: np.random.Generator, requests: int = 60) -> RequestLog:
    """A log with every kind of feature, missing values, late and disordered arrivals, ties and more events than the caps."""
    users, items = [f"ü{n}" for n in range(6)], np.arange(1, 61)
    times = START + np.sort(rng.choice(50 * HOUR, requests, replace=False))

    def maybe(values: Sequence[Any], missing: float = 0.2) -> list[Any]:
        return [None if rng.random() < missing else value for value in values]

    count = 1_500
    happened = START - 5 * HOUR + rng.integers(0, 55 * HOUR, count) // 600_000 * 600_000  # ties
    late = np.where(rng.random(count) < 0.1, rng.integers(0, 20 * HOUR, count), rng.integers(0, 3, count) * 500)
    kinds = rng.choice(["click", "impression"], count)
    shown = [rng.choice(items, rng.integers(1, 12), replace=False) for _ in times]
    tables = {
        LogFile.REQUESTS: {
            "request_id": [f"r{n}" for n in range(requests)],
            "time_ms": times,
            "user_id": rng.choice(users, requests).tolist(),
            "surface": maybe(["home", "feed"] * (requests // 2)),
            "items": [list(row) for row in shown],
            "positions": [list(range(len(row))) for row in shown],
            "label_click": [list(rng.integers(0, 2, len(row))) for row in shown],
            "label_like": [list(rng.integers(0, 2, len(row))) for row in shown],
            "column_bid": [list(rng.random(len(row)).astype(np.float32)) for row in shown],
        },
        LogFile.ITEMS: {
            "item_id": items[:-5],
            "genres": [list(rng.integers(1, 21, rng.integers(0, 5))) for _ in items[:-5]],
            "popularity": maybe(rng.random(len(items) - 5).astype(np.float32).tolist()),
        },
        LogFile.USERS: {"user_id": users[:-1], "country": maybe(["de", "fr", "no", "no", "se"]), "age": maybe([20.0] * 5)},
        LogFile.EVENTS: {
            "event_id": [f"e{n}" for n in range(count)],
            "user_id": rng.choice(users[1:], count).tolist(),
            "type": kinds.tolist(),
            "item_id": rng.integers(1, 20, count),
            "time_ms": happened,
            "arrival_ms": happened + late,
            "click.dwell": [float(rng.integers(3)) if kind == "click" and rng.random() < 0.8 else None for kind in kinds],
            "impression.where": ["home" if kind == "impression" and rng.random() < 0.8 else None for kind in kinds],
            "impression.genres": [
                (1 + rng.choice(20, rng.integers(4), replace=False)).tolist() if kind == "impression" else None
                for kind in kinds
            ],
        },
    }
    return load_request_log(write_log(directory, schema, tables, {}))


async def append(store: RedisStore, outcomes: Sequence[bytes]) -> None:
    await store.execute([("XADD", store.keys.outcomes, "*", "o", outcome) for outcome in outcomes], "test")


def reports(receipt: bytes, issued_ms: int, shown: Sequence[int], labels: Sequence[tuple[int, int]]) -> list[bytes]:
    """What callers send of one list: impressions one by one and together, labels apart and twice, all within the window."""
    parts = [encode_outcome(receipt, [position], [], issued_ms + 10) for position in shown]
    parts += [encode_outcome(receipt, shown, [], issued_ms + HOUR)]
    parts += [encode_outcome(receipt, [], [label], issued_ms + 20) for label in labels for _ in range(2)]
    return [*parts, encode_outcome(receipt, [], [(shown[0], 0), (shown[0], 1)], issued_ms + HOUR + 1)]  # too late to count


def assert_same(original: RequestLog, exported: RequestLog) -> None:
    """Every request of `original`, which were served with more candidates, in another order."""
    assert exported.request_ids == original.request_ids
    for number, name in enumerate(original.request_ids):
        assert exported.time_ms[number] == original.time_ms[number]
        for event, history in original.histories(number).items():
            assert exported.histories(number)[event].tobytes() == history.tobytes(), (name, event)
        users = [log.user_index[number] for log in (original, exported)]
        assert original.user_ids[users[0]] == exported.user_ids[users[1]]
        assert original.user_keys[users[0]] == exported.user_keys[users[1]]
        assert original.users[users[0]].tobytes() == exported.users[users[1]].tobytes()
        assert original.contexts[number].tobytes() == exported.contexts[number].tobytes()
        rows = [log.shown(number) for log in (original, exported)]
        keys = [log.item_keys[log.item_index[row]] for log, row in zip((original, exported), rows, strict=True)]
        orders = [np.argsort(k) for k in keys]
        assert keys[0][orders[0]].tolist() == keys[1][orders[1]].tolist()
        for values in (lambda log: log.items[log.item_index], lambda log: log.labels, lambda log: log.columns["bid"]):
            a, b = (values(log)[row][order] for log, row, order in zip((original, exported), rows, orders, strict=True))
            assert a.tobytes() == b.tobytes(), name


def test_what_was_served_is_the_log_it_came_from(
    artifact: Artifact, engine_cache: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    schema = artifact.schema

    async def scenario() -> None:
        log = write_world(tmp_path / "log", schema, rng)
        assert any(len(log.histories(n)["click"]) == schema.event("click").cap for n in range(len(log))), "caps are reached"
        events = pq.read_table(tmp_path / "log/events.parquet").sort_by("arrival_ms")
        arrival, stored = events["arrival_ms"].to_numpy(), 0
        store = await open_store(EMBEDDED, schema)
        engine = open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
        ranker = Ranker(artifact, engine, store, OPTIONS, SilentObserver())
        counts = Counts()
        served_log = ServedLog(store, schema, 1.0, counts)
        writing = asyncio.create_task(served_log.run())
        outcomes: list[bytes] = []
        try:
            await ranker.start()
            await load_items(store, schema, tmp_path / "log/items.parquet")
            await load_users(store, schema, tmp_path / "log/users.parquet")
            for number in range(len(log)):
                now = int(log.time_ms[number])
                due = int(np.searchsorted(arrival, now, side="left"))
                if due > stored:
                    pq.write_table(events.slice(stored, due - stored), tmp_path / "part.parquet")
                    await load_events(store, schema, tmp_path / "part.parquet")
                    stored = due
                row = log.shown(number)
                own = log.item_keys[log.item_index[row]]
                others = np.setdiff1d(np.arange(1, 61), own)[:8]
                user = log.user_ids[log.user_index[number]]
                clock = asyncio.get_running_loop().time()
                request = RankRequest(
                    request_id=log.request_ids[number],
                    user_id=user,
                    user_key=string_key(user, schema.hash),
                    candidates=CandidateBlock(
                        np.concatenate([others, own]), columns={"bid": np.append(np.ones(8), log.columns["bid"][row])}
                    ),
                    context=log.contexts[number : number + 1],
                    received_ms=now,
                    deadline=clock + 30,
                    started=clock,
                    keeps_features=True,
                )
                result = await ranker.rank(request)
                keys = request.candidates.keys[result.order]
                tasks = tuple(task.name for task in schema.tasks)
                served = ServedList(
                    request.request_id, now + 3, result.version, "", int(result.rung), keys, result.probabilities, tasks
                )
                receipt = SIGNER.sign(served)
                served_log.add(served, receipt, request, result)
                places = [int(np.flatnonzero(keys == key)[0]) for key in own]
                labels = [
                    (place, task)
                    for place, tasks in zip(places, log.labels[row], strict=True)
                    for task in np.flatnonzero(tasks).tolist()
                ]
                outcomes += reports(receipt, served.issued_ms, places, labels)
            await served_log.flush(30)
            assert counts.of == {"stored": len(log)}
            rng.shuffle(outcomes)
            await append(store, outcomes)
            report = await export_log(store, schema, ALL, tmp_path / "exported")
            assert (report.served, report.exported, dict(report.left_out)) == (len(log), len(log), {})
            assert report.examples == report.impressions == len(log.item_index)
            assert report.changed_features == {"items": 0, "users": 0}
            assert report.moved_arrivals == 0
            assert_same(log, load_request_log(tmp_path / "exported"))
            assert json.loads((tmp_path / "exported/dataset.json").read_text())["negative_rate"] == 1.0

            report = await export_log(store, schema, replace(ALL, negative_rate=0.3), tmp_path / "sampled")
            sampled = load_request_log(tmp_path / "sampled")
            positives = int(log.labels.any(axis=1).sum())
            assert (sampled.labels.any(axis=1)).sum() == positives
            negatives = len(log.labels) - positives
            assert 0.15 * negatives < len(sampled.labels) - positives < 0.45 * negatives
            await export_log(store, schema, replace(ALL, negative_rate=0.3), tmp_path / "again")
            assert load_request_log(tmp_path / "again").item_index.tobytes() == sampled.item_index.tobytes()
        finally:
            writing.cancel()
            await ranker.close()
            await store.close()
            engine.close()

    asyncio.run(scenario())


class Export:
    """Entries and outcomes put into a store by hand."""

    def __init__(self, store: RedisStore, schema: Schema, directory: Path) -> None:
        self.store, self.schema, self._directory = store, schema, directory

    async def serve(self, number: int, user_id: str = "ann", shown: Sequence[int] = (0, 1), **changes: Any) -> bytes:
        """Log one list of three items and report some as shown; returns its receipt."""
        base = random_entry(self.schema, 3, [0, 0], number, user_id)
        plain = missing_records(feature_dtype(self.schema.user), 1)
        items = missing_records(feature_dtype(self.schema.item_features), 3)
        context = missing_records(feature_dtype(self.schema.context), 1)
        at_ms = changes.pop("at_ms", START + number)
        scores = np.full((3, 2), 0.5, np.float32)
        receipt = SIGNER.sign(ServedList(base.request_id, at_ms, "7", "", 1, base.item_keys, scores, ("click", "like")))
        base = replace(
            base, identity=receipt[-16:], user=plain, items=items, context=context, issued_ms=at_ms, received_ms=at_ms
        )
        entry = replace(base, **changes)
        await self.store.append_served([(user_id, ServedLogFormat(self.schema).encode(entry))])
        if shown:
            await append(self.store, [encode_outcome(receipt, shown, [(shown[0], 1)], at_ms + 5)])
        return receipt

    async def run(self, **changes: Any) -> tuple[Any, RequestLog]:
        report = await export_log(self.store, self.schema, replace(ALL, **changes), self._directory)
        return report, load_request_log(self._directory)


def play(scenario: Any, schema: Schema, directory: Path, **options: Any) -> None:
    async def main() -> None:
        store = await open_store(EMBEDDED, schema, options=RedisOptions(**options))
        try:
            await scenario(Export(store, schema, directory / "log"))
        finally:
            await store.close()

    asyncio.run(main())


@pytest.fixture
def schema(artifact: Artifact) -> Schema:
    return artifact.schema


def test_every_list_that_is_left_out_has_its_reason(schema: Schema, tmp_path: Path) -> None:
    async def scenario(export: Export) -> None:
        store, now = export.store, ALL.now_ms
        await export.serve(1)
        await export.serve(2, shown=())
        late = await export.serve(3, shown=())
        await append(store, [encode_outcome(late, [0], [], START + 2 * HOUR), b"junk"])
        await export.serve(4, at_ms=now - HOUR + 1)
        await export.serve(5, at_ms=now - HOUR - 1)
        data = schema.model_dump(mode="json")
        other = Schema.model_validate(data | {"tasks": data["tasks"][::-1]})
        foreign = ServedLogFormat(other).encode(random_entry(other, 3, [0, 0], 6))
        await store.append_served([("x", foreign), ("x", b"junk")])
        (entries,) = await store.execute([("XRANGE", store.keys.served, "-", "+")], "test")
        await store.append_served([("ann", entries[0][1][1])])
        await export.serve(7, at_ms=START - HOUR)
        await export.serve(8, at_ms=now + HOUR)
        await export.serve(9, user_id="bob")
        await store.delete_user("bob")
        await export.serve(10, user_id="bob")
        await export.serve(11, user_id="eve")
        await store.execute([("UNLINK", served_key(store.keys.tag("eve")))], "test")  # a write that was cut in half
        report, log = await export.run(since_ms=START, until_ms=now)
        assert dict(report.left_out) == {
            Reason.NO_IMPRESSIONS: 1,
            Reason.EXPIRED: 1,
            Reason.IMMATURE: 1,
            Reason.OTHER_SCHEMA: 1,
            Reason.UNDECODABLE: 1,
            Reason.REPEATED: 1,
            Reason.FORGOTTEN: 2,
        }
        assert (report.served, report.with_impressions, report.exported) == (10, 2, 2)
        assert report.undecodable_outcomes == 1
        assert log.request_ids == ["r1", "r5"]
        assert log.positions.tolist() == [0, 1, 0, 1]
        assert log.labels.tolist() == [[0, 1], [0, 0]] * 2
        report, log = await export.run(since_ms=START, until_ms=now, include_immature=True)
        assert log.request_ids == ["r1", "r5", "r4"]

    play(scenario, schema, tmp_path)


def test_nothing_to_export_leaves_an_older_log_alone(schema: Schema, tmp_path: Path) -> None:
    async def scenario(export: Export) -> None:
        with pytest.raises(ConfigError, match=r"expected lists to export, found none among 0 \(empty\)"):
            await export.run()
        await export.serve(1)
        await export.run()
        with pytest.raises(ConfigError, match=r"found none among 1 \(1: the attribution window has not ended\)"):
            await export.run(now_ms=START)
        assert len(load_request_log(tmp_path / "log")) == 1
        with pytest.raises(ConfigError, match="exists and is not a canonical log"):
            await export_log(export.store, schema, ALL, Path(__file__).parent)

    play(scenario, schema, tmp_path)


def test_lists_whose_outcomes_may_be_lost_are_left_out(schema: Schema, tmp_path: Path) -> None:
    async def scenario(export: Export) -> None:
        await export.serve(1)
        await export.serve(2, at_ms=ALL.now_ms - 2 * HOUR)
        await export.store.execute([("XTRIM", export.store.keys.outcomes, "MAXLEN", "=", 1)], "test")
        report, log = await export.run()
        assert dict(report.left_out) == {Reason.OUTCOMES_TRIMMED: 1}
        assert log.request_ids == ["r2"]

    play(scenario, schema, tmp_path)


def test_events_seen_before_they_arrived_arrive_just_before_and_what_cannot_be_rebuilt_is_left_out(
    schema: Schema, tmp_path: Path
) -> None:
    async def scenario(export: Export) -> None:
        click = schema.event("click")
        base = random_entry(schema, 3, [3, 0], 0).histories["click"].copy()
        base["time_ms"], base["dwell"] = [START - 30, START - 20, START - 10], 1.0
        base[ARRIVAL_MS] = [START - 25, START + 4, START + 900]
        nothing = random_entry(schema, 3, [0, 0], 0).histories["impression"]
        await export.serve(3, histories={"click": base, "impression": nothing})  # at START + 3: the caller's clock is behind
        await export.serve(1, histories={"click": base[:1], "impression": nothing})
        await export.serve(4, histories={"click": base[:1], "impression": nothing})  # another clock: did not see the others
        report, log = await export.run()
        assert dict(report.left_out) == {Reason.HISTORIES: 1}
        assert report.moved_arrivals == 2
        assert log.request_ids == ["r1", "r3"]
        assert log.histories(0)["click"].tobytes() == base[:1].tobytes()
        seen = log.histories(1)["click"]
        assert seen[ARRIVAL_MS].tolist() == [START - 25, START + 2, START + 2]
        for name in ("item", "time_ms", *(f.name for f in click.attributes)):
            assert seen[name].tobytes() == base[name].tobytes()

    play(scenario, schema, tmp_path)


def test_the_newest_features_count_and_changes_are_reported(schema: Schema, tmp_path: Path) -> None:
    async def scenario(export: Export) -> None:
        items = missing_records(feature_dtype(schema.item_features), 3)
        user = missing_records(feature_dtype(schema.user), 1)
        keys = np.array([1, 2, 3])
        newer, older = items.copy(), user.copy()
        newer["popularity"], older["age"] = [5.0, 5.0, np.nan], 40.0
        await export.serve(2, item_keys=keys, items=newer, user=user, has_user=True, shown=(0, 1, 2))
        await export.serve(1, item_keys=keys, items=items, user=older, has_user=True, shown=(0, 2))
        report, log = await export.run()
        assert report.changed_features == {"items": 1, "users": 1}
        assert json.loads((tmp_path / "log/dataset.json").read_text())["changed_features"] == {"items": 1, "users": 1}
        by_key = dict(zip(log.item_keys.tolist(), log.items, strict=True))
        assert by_key[1]["popularity"] == 5.0
        assert np.isnan(log.users[0]["age"])

    play(scenario, schema, tmp_path)


def test_a_request_id_used_twice_stays_two_requests(schema: Schema, tmp_path: Path) -> None:
    async def scenario(export: Export) -> None:
        await export.serve(1, request_id="same")
        again = await export.serve(2, request_id="same")
        _, log = await export.run()
        assert log.request_ids == ["same", f"same~{again[-16:].hex()}"]

    play(scenario, schema, tmp_path)


def test_forgetting_a_user_deletes_their_part_of_the_served_log(schema: Schema, tmp_path: Path) -> None:
    async def scenario(export: Export) -> None:
        store = export.store
        for number in range(3):
            await export.serve(number, user_id="ann")
            await export.serve(10 + number, user_id="bob")
        assert await store.delete_user("ann")
        assert not await store.delete_user("ann")
        report, log = await export.run()
        assert (report.served, set(log.user_ids)) == (3, {"bob"})
        (names,) = await store.nodes.on_every_node("KEYS", store.keys.tag("ann") + "*")
        assert names == []

    play(scenario, schema, tmp_path)


def test_the_served_log_and_its_notes_are_bounded(schema: Schema, tmp_path: Path) -> None:
    async def scenario(export: Export) -> None:
        store, served = export.store, export.store.keys.served
        for number in range(400):
            await export.serve(number, shown=())
        (length, noted, oldest) = await store.execute(
            [("XLEN", served), ("ZCARD", store.keys.tag("ann") + "s"), ("XRANGE", served, "-", "+", "COUNT", 1)], "test"
        )
        assert 50 <= length <= 200
        first_ms = int(oldest[0][0].partition(b"-")[0])
        assert noted >= length
        (stale,) = await store.execute([("ZCOUNT", store.keys.tag("ann") + "s", "-inf", f"({first_ms}")], "test")
        assert stale == 0

    play(scenario, schema, tmp_path, max_served=50)


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(["export", *given])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--since", "yesterday"), "argument --since: expected ISO 8601 or ms since the epoch, found 'yesterday'"),
        (("--negative-rate", "0"), "argument --negative-rate: expected a share above 0 and at most 1, found '0'"),
        (("--attribution-window", "-1"), "argument --attribution-window: expected seconds above 0, found '-1'"),
    ],
)
def test_mistakes_name_the_argument(given: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments("--store", "x", "--schema", "s", "--output", "o", *given)
    assert message in capsys.readouterr().err


def test_times_are_utc_or_say_otherwise() -> None:
    always = ("--store", "x", "--schema", "s", "--output", "o")
    for text in ("2026-01-01", "2026-01-01T01:00+01:00", "2026-01-01T00:00:00Z", str(START)):
        assert arguments(*always, "--since", text).since == START
    with pytest.raises(UsageError, match="--model and --version: only with --repository"):
        command.run(arguments(*always, "--model", "m"))


def test_a_server_logs_what_it_served_until_it_is_told_not_to(
    artifact: Artifact, engine_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--repository", str(artifact.path.parents[1]), "--engine-cache", str(engine_cache))
    for rate in ("1", "0"):
        directory = tmp_path / rate
        directory.mkdir()
        output = directory / "log"
        with serve(directory, *model, "--served-log-rate", rate) as server:
            facts = server.wait_until_ready()
            with Client(facts["address"], timeout_s=10) as client:
                token = client.record_events([Event("maya", "click", 7, {"dwell": 9.0})])
                columns = {"bid": [1.0, 2.0, 3.0], "popularity": [7.0, 8.0, 9.0]}
                reply = client.rank("maya", [1, 2, 3], columns=columns, context={"surface": "home"}, after=token)
                client.report_outcomes([Outcome(reply.receipt, shown=[0, 2])])
                client.report_outcomes([Outcome(reply.receipt, labels={"like": [2]})])
            export = arguments(
                *("--store", facts["store"], "--artifact", str(artifact.path), "--output", str(output)),
                *("--include-immature", "--json"),
            )
            if rate == "0":
                with pytest.raises(UsageError, match=r"found none among 0 \(empty\)"):
                    command.run(export)
                continue
            for _ in range(100):  # the log is written behind the Rank's back
                try:
                    assert command.run(export) == 0
                    break
                except UsageError:
                    continue
            assert json.loads(capsys.readouterr().out)["exported"] == 1
            log = load_request_log(output)
            keys = [int(item) for item in reply.items]
            assert log.item_keys[log.item_index].tolist() == [keys[0], keys[2]]
            assert log.labels.tolist() == [[0, 0], [0, 1]]
            assert log.items["popularity"].tolist() == [6.0 + keys[0], 6.0 + keys[2]], "as sent with the request"
            assert log.columns["bid"].tolist() == [float(keys[0]), float(keys[2])]
            assert log.contexts["surface"].tolist() == [string_key("home", artifact.schema.hash)]
            assert log.histories(0)["click"]["item"].tolist() == [7]
            assert pa.types.is_int64(pq.read_table(output / "requests.parquet")["surface"].type)
            assert server.stop() == 0
