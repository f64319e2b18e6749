"""Affinities: the sums against a pair-by-pair oracle, what succeeds, and one meaning in training and serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import model.affinity
from model.affinity import RateTable, ValueSpace, counted_rates, overlaps, record_of, succeeded, value_sums
from model.config import ConfigError, parse_yaml
from model.data.canonical import LogFile, write_log
from model.data.request_log import load_request_log
from model.features import FeatureEncoder, FeatureStats
from model.records import ITEM, TIME_MS, event_dtype, missing_records
from model.schema import Schema
from model.training.batches import BatchMaker
from model.training.fit_features import fit_features

SCHEMA = """
name: films
tables: {item: {width: 4}, genre: {width: 4}, director: {width: 4}}
item: {id_type: int64, table: item}
context: [{name: since, kind: numeric, derived: seconds_since_newest_event}]
item_features:
  - &genres {name: genres, kind: multi, table: genre, max_values: 3}
  - &director {name: director, kind: categorical, table: director}
  - &year {name: year, kind: numeric, buckets: {quantiles: 3, width: 2}}
  - {name: length, kind: numeric}
events:
  - {name: click, cap: 16}
  - {name: impression, cap: 16, attributes: [*year, *genres, *director]}
affinities: [{name: taste, event: impression, outcome: click, by: [item, director, genres, year]}]
tasks: [{name: click}]
value: p_click
"""


def events_of(schema: Schema, name: str, items: list[int], times: list[int]) -> NDArray[np.void]:
    records = missing_records(event_dtype(schema.event(name)), len(items))
    records[ITEM], records[TIME_MS] = items, times
    return records


def test_an_outcome_belongs_to_the_newest_event_of_its_item_before_it() -> None:
    schema = parse_yaml(Schema, SCHEMA)
    shown = events_of(schema, "impression", [1, 2, 1, 3, 1], [10, 10, 20, 20, 30])
    clicks = events_of(schema, "click", [1, 2, 9, 3], [25, 10, 15, 19])
    assert succeeded(shown, clicks).tolist() == [False, True, True, False, False]
    shuffled = np.array([4, 2, 0, 1, 3])
    assert succeeded(shown[shuffled], clicks[::-1]).tolist() == [False, True, False, True, False]
    assert succeeded(shown, clicks[:0]).tolist() == [False] * 5
    assert succeeded(shown[:0], clicks).tolist() == []


def test_residuals_are_beyond_what_item_and_user_explain() -> None:
    schema = parse_yaml(Schema, SCHEMA)
    table = RateTable(np.array([1, 2]), np.array([0.5, 0.1], np.float32), 0.2)
    record = record_of(events_of(schema, "impression", [1, 2, 7], [1, 1, 1]), events_of(schema, "click", [2], [2]), table, 4.0)
    lift = (1 + 4 * 0.2) / (0.5 + 0.1 + 0.2 + 4 * 0.2)
    assert record.residuals == pytest.approx([-0.5 * lift, 1 - 0.1 * lift, -0.2 * lift], rel=1e-6)
    rate = np.log(1.8 / (2 + 4 * 0.8)) - np.log(0.2 / 0.8)
    assert record.request == pytest.approx([rate, np.log(lift)], rel=1e-5)
    nobody = record_of(events_of(schema, "impression", [], []), events_of(schema, "click", [], []), table, 4.0)
    assert nobody.request.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("slots", [model.affinity.SLOTS, 4])
@pytest.mark.parametrize("events", [0, 1, 37])
def test_sums_over_values_equal_sums_over_pairs(slots: int, events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.affinity, "SLOTS", slots)  # four: values contend for places
    rng = np.random.default_rng(events)
    rows = rng.integers(-1, 6, (events, 1 + 4))
    ours = rng.integers(-1, 6, (9, 2 + 1))
    residuals = rng.normal(size=events)
    space = ValueSpace.of([6, 6], [1, 4], [2, 1])
    for block in (rows[:, 1:], ours[:, :2]):  # values of one row differ, as ids of a multi-valued feature do
        for row in block:
            row[1:][np.isin(row[1:], row[0])] = -1
            for at in range(1, len(row)):
                row[at] = -1 if row[at] in row[:at] else row[at]
    found = overlaps(space, ours.astype(np.int32), value_sums(space, rows.astype(np.int32), residuals))
    for feature, (mine, theirs) in enumerate([(ours[:, :2], rows[:, :1]), (ours[:, 2:], rows[:, 1:])]):
        for candidate in range(len(ours)):
            values = {v for v in mine[candidate] if v > 0}
            pull = mass = 0.0
            for event in range(events):
                other = {v for v in theirs[event] if v > 0}
                overlap = len(values & other) / np.sqrt(len(values) * len(other)) if values and other else 0.0
                pull, mass = pull + overlap * residuals[event], mass + overlap
            expected = [pull / np.sqrt(1 + mass), np.log1p(mass)]
            assert found[candidate, 2 * feature : 2 * feature + 2] == pytest.approx(expected, abs=1e-5)


def test_rates_are_smoothed_towards_the_base_rate() -> None:
    keys, positives = np.array([3, 5]), np.array([1.0, 1.0])
    table = counted_rates(keys, positives, np.array([2.0, 2.0]), 2.0)
    assert table.base == 0.5
    assert table.of(np.array([3, 4, 5])) == pytest.approx([0.5, 0.5, 0.5])
    sampled = counted_rates(keys, positives, np.array([5.0, 15.0]), 20.0)  # shown items stand for others that are gone
    assert sampled.base == pytest.approx(0.1)
    assert sampled.of(np.array([3, 4, 5])) == pytest.approx([3 / 25, 0.1, 3 / 35])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("event: impression", "event: shown", "event 'shown' is not an event type; there are: click, impression"),
        ("outcome: click", "outcome: impression", "outcome 'impression' must be a task as well.*there are: click"),
        ("by: [item, director", "by: [item, length, director", "'length' is not `item` or an item feature with ids or buckets"),
        (
            "attributes: [*year, *genres, *director]",
            "attributes: [*year, *genres]",
            "no attribute 'director' of kind categorical",
        ),
        ("by: [item, director", "by: [item, item, director", "by: declared twice: item"),
        ("{name: length, kind", "{name: item, kind", r"item_features \(with affinities\): 'item' is reserved here"),
        (
            "{name: click, cap: 16}",
            "{name: click, cap: 8}",
            "taste: outcome 'click' has cap 8, expected at least the 16 of 'impression': .* Raise events.click.cap or lower",
        ),
        (
            "{name: click, cap: 16}",
            "{name: click, cap: 16, min_fold_interval_s: 2}",
            "taste: outcome 'click' has min_fold_interval_s 2, expected 0 or a divisor of the 0 of 'impression'",
        ),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(Schema, SCHEMA.replace(old, new))


@pytest.mark.parametrize(
    ("click", "impression", "is_right"), [(0, 0, 1), (0, 9, 1), (5, 10, 1), (9, 9, 1), (9, 10, 0), (10, 5, 0)]
)
def test_outcomes_are_folded_in_no_later_than_their_events(click: float, impression: float, is_right: bool) -> None:
    text = SCHEMA.replace("cap: 16}", f"cap: 16, min_fold_interval_s: {click}}}")
    text = text.replace("cap: 16, attributes", f"cap: 16, min_fold_interval_s: {impression}, attributes")
    if is_right:
        parse_yaml(Schema, text)
    else:
        with pytest.raises(ConfigError, match=r"Lower events\.click\.min_fold_interval_s"):
            parse_yaml(Schema, text)


def test_a_lookup_finds_every_value_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    for slots in (4, 1 << 16):
        monkeypatch.setattr(model.affinity, "SLOTS", slots)
        values = np.unique(np.append(rng.choice(1 << 20, 60), 0))
        wanted = np.concatenate([values, rng.integers(0, 1 << 20, 300)])[:, None]
        found = model.affinity._places(values, wanted)
        assert np.array_equal(found, np.where(np.isin(wanted, values), np.searchsorted(values, wanted), 0))


def test_schemas_without_affinities_keep_their_digest_and_others_have_their_own() -> None:
    """The digest is the one that artifacts had when schemas knew no affinities: it must not change."""
    before = "{name: s, tables: {item: {width: 2}}, item: {table: item}, events: [{name: click, cap: 2}], "
    digest = parse_yaml(Schema, before + "tasks: [{name: click}], value: p_click}").digest
    assert digest == "c4384985aca0118547bddc2d6f3b4076202fbc1200f4d040509d39afd7b7edd3"
    schema = parse_yaml(Schema, SCHEMA)
    assert schema.digest != schema.model_copy(update={"affinities": ()}).digest


def test_statistics_survive_storage_and_batches_carry_affinities(tmp_path: Path) -> None:
    """Users who like genre 1 or genre 2: what they clicked before says what they will click, also after a round trip."""
    rng = np.random.default_rng(3)
    film = np.arange(1, 41)
    genre, likes = 1 + film % 2, 1 + np.arange(60) % 2
    requests: dict[str, list[object]] = {
        n: [] for n in ("request_id", "time_ms", "user_id", "items", "positions", "label_click")
    }
    events: dict[str, list[object]] = {n: [] for n in ("event_id", "user_id", "type", "item_id", "time_ms", "arrival_ms")}
    events |= {f"impression.{n}": [] for n in ("genres", "director", "year")}
    for turn in range(3):
        for user in range(60):
            items = rng.choice(film, 6, replace=False)
            clicked = (genre[items - 1] == likes[user]).astype(int).tolist()
            at = 1_000_000 * (turn + 1) + user
            values = (f"{turn}/{user}", at, str(user), items.tolist(), list(range(6)), clicked)
            for name, value in zip(requests, values, strict=True):
                requests[name].append(value)
            for kind, item, hit in [*(("impression", i, 1) for i in items), *zip(["click"] * 6, items, clicked, strict=True)]:
                if hit:
                    seen = kind == "impression"
                    row = (f"{turn}/{user}/{kind}/{item}", str(user), kind, int(item), at + (not seen), at + (not seen))
                    attributes = ([int(genre[item - 1])], int(item) % 5, float(item)) if seen else (None, None, None)
                    for name, value in zip(events, (*row, *attributes), strict=True):
                        events[name].append(value)
    text = SCHEMA.replace("table: genre,", "table: genre, id_type: int64,").replace(
        "table: director}", "table: director, id_type: int64}"
    )
    films = {"item_id": film, "genres": [[int(g)] for g in genre], "director": film % 5, "year": film.astype(float)}
    tables = {
        LogFile.REQUESTS: requests,
        LogFile.ITEMS: films | {"length": [None] * 40},
        LogFile.USERS: {"user_id": []},
        LogFile.EVENTS: events,
    }
    write_log(tmp_path / "log", parse_yaml(Schema, text), tables, {})
    log = load_request_log(tmp_path / "log")
    train, last = np.flatnonzero(log.time_ms < 3_000_000), np.flatnonzero(log.time_ms >= 3_000_000)
    stats = fit_features(log, train)
    again = FeatureStats.from_json(stats.to_json(), stats.arrays())
    batches = [BatchMaker(log, FeatureEncoder(log.schema, s)).batch(last) for s in (stats, again)]
    assert np.array_equal(batches[0].items.dense, batches[1].items.dense)
    columns = FeatureEncoder(log.schema, stats).layout.item.dense
    taste = batches[0].items.dense[:, columns.index("taste_genres_taste")].numpy()
    label = batches[0].labels[:, 0].numpy()
    assert taste[label == 1].min() > taste[label == 0].max()
    assert stats.moments["item.taste_genres_taste"][1] != 1.0
    assert batches[0].contexts.dense.shape == (60, 3)
    held_out = log.labels.copy()
    held_out[log.rows_of(last)] = 1 - held_out[log.rows_of(last)]
    unseen = fit_features(replace(log, labels=held_out), train)
    assert unseen.moments == stats.moments
    assert np.array_equal(unseen.rates["taste"].rates, stats.rates["taste"].rates)
    assert fit_features(replace(log, labels=1 - log.labels), train).rates["taste"].base != stats.rates["taste"].base
