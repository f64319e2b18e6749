"""The served log: its entries say what was served, and writing them never costs a Rank anything."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import parse_yaml
from model.records import event_dtype, feature_dtype, missing_records
from model.schema import Schema
from serving.core.errors import StoreUnavailable
from serving.core.types import CandidateBlock, RankRequest, RankResult, Rung, ServedFeatures, StageTimes
from serving.feedback.receipt import ReceiptSigner, ServedList, receipt_identity
from serving.training_log.served_log import OtherLayout, ServedEntry, ServedLogFormat, entry_of, layout_of
from serving.training_log.served_writer import ServedLog
from tests.serving.random_artifact import SCHEMA as YAML

SCHEMA = parse_yaml(Schema, YAML)
BARE = parse_yaml(
    Schema,
    """
name: bare
tables: {item: {width: 4}}
item: {id_type: string, table: item}
events: [{name: click, cap: 4}]
tasks: [{name: click}]
value: p_click
""",
)
SIGNER = ReceiptSigner({0: b"k" * 32}, 0)


def random_records(dtype: np.dtype[np.void], count: int, rng: np.random.Generator) -> np.ndarray:
    """Records of random bytes."""
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype) if dtype.itemsize and count else np.zeros(count, dtype)


def random_entry(schema: Schema, k: int, lengths: Sequence[int], seed: int, user_id: str = "ann") -> ServedEntry:
    """An entry whose records are random bytes."""
    rng = np.random.default_rng(seed)
    return ServedEntry(
        identity=rng.bytes(16),
        request_id=f"r{seed}",
        user_id=user_id,
        model_version="7",
        issued_ms=1_000 + seed,
        received_ms=900 + seed,
        rung=1,
        has_user=bool(seed % 2),
        context=random_records(feature_dtype(schema.context), 1, rng),
        user=random_records(feature_dtype(schema.user), 1, rng),
        item_keys=rng.integers(-(2**62), 2**62, k),
        items=random_records(feature_dtype(schema.item_features), k, rng),
        columns={name: rng.standard_normal(k).astype(np.float32) for name in schema.request_columns},
        histories={
            event.name: random_records(event_dtype(event), length, rng)
            for event, length in zip(schema.events, lengths, strict=True)
        },
    )


def as_bytes(entry: ServedEntry) -> dict[str, object]:
    """What an entry says, comparable."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.tobytes()
        return {key: plain(part) for key, part in value.items()} if isinstance(value, dict) else value

    return {name: plain(value) for name, value in vars(entry).items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(0, 9), min_size=2, max_size=2), st.integers(0, 9), st.text(max_size=20))
def test_an_entry_comes_back_as_it_was(k: int, lengths: list[int], seed: int, user_id: str) -> None:
    for schema, own in ((SCHEMA, lengths), (BARE, lengths[:1])):
        entry, written = random_entry(schema, k, own, seed, user_id), ServedLogFormat(schema)
        assert as_bytes(written.decode(written.encode(entry))) == as_bytes(entry)


def test_every_cut_and_every_changed_byte_is_refused() -> None:
    written = ServedLogFormat(SCHEMA)
    data = written.encode(random_entry(SCHEMA, 3, [2, 1], 0))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="not an entry"):
            written.decode(data[:length])
    for at in range(len(data)):
        with pytest.raises(ValueError, match="served log"):
            written.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for foreign in (b"", b"junk" * 10, data + b"x", data[:13] + zlib.compress(b"x" * 100)):
        with pytest.raises(ValueError, match="not an entry"):
            written.decode(foreign)


def test_an_entry_of_another_schema_is_told_apart() -> None:
    data = SCHEMA.model_dump(mode="json")
    changed = [
        data | {"tasks": data["tasks"][::-1]},
        data | {"request_columns": ["bid", "margin"]},
        data | {"hash": {"seed": 1}},
    ]
    changed.append(data | {"user": data["user"][:1]})
    entry = ServedLogFormat(SCHEMA).encode(random_entry(SCHEMA, 1, [0, 0], 0))
    for other in map(Schema.model_validate, changed):
        with pytest.raises(OtherLayout, match=f"expected layout {layout_of(other).hex()}, found {layout_of(SCHEMA).hex()}"):
            ServedLogFormat(other).decode(entry)
    assert layout_of(Schema.model_validate(data | {"name": "renamed", "value": "p_like"})) == layout_of(SCHEMA)


class Stream:
    """A served log in memory, which may be away or slow."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, bytes]] = []
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def append_served(self, entries: Sequence[tuple[str, bytes]]) -> None:
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailable("store: append: away")
        self.entries += entries


class Counts:
    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def served_log(self, outcome: str, count: int) -> None:
        self.of[outcome] += count


def answered(number: int, *, is_intact: bool = True, k: int = 3) -> tuple[ServedList, bytes, RankRequest, RankResult]:
    """A Rank of five candidates, whose result carries the features of the best `k`."""
    rng, order = np.random.default_rng(number), np.array([4, 0, 2, 1, 3])[:k]
    features = ServedFeatures(
        user=missing_records(feature_dtype(SCHEMA.user), 1),
        has_user=True,
        histories={event.name: random_records(event_dtype(event), 2, rng) for event in SCHEMA.events},
        items=random_records(feature_dtype(SCHEMA.item_features), k, rng),
        is_intact=is_intact,
    )
    block = CandidateBlock(np.arange(10, 15), columns={"bid": np.arange(5.0)})
    context = missing_records(feature_dtype(SCHEMA.context), 1)
    request = RankRequest(f"r{number}", "ann", 1, block, context, 1_000, 0.0, 0.0)
    probabilities = np.full((k, 2), 0.5, np.float32)
    values = np.zeros(k)
    result = RankResult(
        *("m", "7", order, probabilities, values, Rung.FULL, "", 0, 2, True, 0, False, StageTimes(), features),
    )
    served = ServedList(request.request_id, 1_001, "7", "", 1, block.keys[order], probabilities, ("click", "like"))
    return served, SIGNER.sign(served), request, result


def test_an_entry_says_what_the_receipt_says() -> None:
    served, receipt, request, result = answered(3)
    entry = entry_of(served, receipt, request, result)
    assert entry.identity == receipt_identity(receipt)
    assert entry.item_keys.tolist() == [14, 10, 12]
    assert entry.columns["bid"].tolist() == [4.0, 0.0, 2.0]
    assert (entry.received_ms, entry.issued_ms, entry.user_id) == (1_000, 1_001, "ann")


def test_sampling_is_by_request_id_and_by_share() -> None:
    async def scenario() -> None:
        ids = [f"request {n}" for n in range(4_000)]
        for rate, low, high in ((0.0, 0, 0), (0.25, 900, 1_100), (1.0, 4_000, 4_000)):
            log = ServedLog(Stream(), SCHEMA, rate, Counts())
            chosen = [i for i in ids if log.samples(i)]
            assert low <= len(chosen) <= high
            assert chosen == [i for i in ids if log.samples(i)]

    asyncio.run(scenario())


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    async def scenario() -> None:
        stream, counts = Stream(), Counts()
        stream.gate.clear()
        log = ServedLog(stream, SCHEMA, 1.0, counts, max_bytes=10_000)
        writing = asyncio.create_task(log.run())
        for number in range(20):
            log.add(*answered(number))
            await asyncio.sleep(0)
        dropped = counts.of["dropped"]
        assert 10 <= dropped < 20
        stream.gate.set()
        await log.flush(10.0)
        assert counts.of == {"stored": 20 - dropped, "dropped": dropped}
        log.add(*answered(99))  # there is room again
        await log.flush(10.0)
        writing.cancel()
        decoded = [ServedLogFormat(SCHEMA).decode(entry) for _, entry in stream.entries]
        assert [entry.request_id for entry in decoded] == [*(f"r{n}" for n in range(20 - dropped)), "r99"]

    asyncio.run(scenario())


def test_a_store_that_is_away_costs_entries_and_nothing_else() -> None:
    async def scenario() -> None:
        stream, counts = Stream(), Counts()
        log = ServedLog(stream, SCHEMA, 1.0, counts)
        writing = asyncio.create_task(log.run())
        stream.is_away = True
        log.add(*answered(1))
        await log.flush(10.0)
        stream.is_away = False
        log.add(*answered(2))
        await log.flush(10.0)
        assert counts.of == {"dropped": 1, "stored": 1}
        stream.gate.clear()
        log.add(*answered(3))
        await log.flush(0.05)
        assert counts.of == {"dropped": 2, "stored": 1}, "the wait at the end is bounded"
        writing.cancel()

    asyncio.run(scenario())


def test_features_that_are_not_the_users_are_not_logged() -> None:
    async def scenario() -> None:
        counts = Counts()
        log = ServedLog(Stream(), SCHEMA, 1.0, counts)
        log.add(*answered(1, is_intact=False))
        served, receipt, request, result = answered(2)
        log.add(served, receipt, request, replace(result, features=None))
        assert counts.of == {"skipped": 2}

    asyncio.run(scenario())
