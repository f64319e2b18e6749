"""Records and feature encoding: one meaning for training and serving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.feature_fit import FeatureFit
from model.features import PAD_ROW, FeatureEncoder, FeatureStats, GroupLayout, gather
from model.hashing import MISSING_KEY, string_keys
from model.layers.embedding import EmbeddingTables
from model.records import (
    FieldError,
    event_dtype,
    feature_dtype,
    fill_multi_column,
    fill_scalar_column,
    missing_records,
)
from model.schema import Schema


@pytest.fixture
def encoder(schema: Schema, rng: np.random.Generator) -> FeatureEncoder:
    """Fitted on a little random data."""
    items = missing_records(feature_dtype(schema.item_features), 30)
    fill_scalar_column(items, schema.item_features[1], rng.uniform(0, 100, 30).tolist(), schema.hash, "popularity")
    genres = [f"g{i % 7}" for i in range(60)]
    fill_multi_column(items, schema.item_features[0], genres, list(range(0, 61, 2)), schema.hash, "genres")
    item_keys = string_keys([f"i{i}" for i in range(30)], schema.hash)
    fit = FeatureFit(schema)
    fit.users(missing_records(feature_dtype(schema.user), 3))
    contexts = missing_records(feature_dtype(f for f in schema.context if f.derived is None), 5)
    fit.requests(contexts, np.arange(5), np.arange(5) * 3_600_000, np.array([-1, 0, 0, 10, 3_600_000]))
    fit.items(items)
    fit.shown(item_keys)
    return FeatureEncoder(schema, fit.stats())


def test_unknown_ids_are_row_zero_and_missing_multi_values_are_padding(schema: Schema, encoder: FeatureEncoder) -> None:
    records = missing_records(feature_dtype(schema.item_features), 2)
    fill_multi_column(records, schema.item_features[0], ["g0", "never seen"], [0, 2, 2], schema.hash, "genres")
    encoded = encoder.encode_items(string_keys(["i3", "stranger"], schema.hash), records)
    assert encoded.rows[0, 0] > 0
    assert encoded.rows[1, 0] == 0
    assert encoded.rows[0, 1] > 0
    assert encoded.rows[0, 2] == 0
    assert (encoded.rows[0, 3:] == PAD_ROW).all()
    assert (encoded.rows[1, 1:] == PAD_ROW).all()
    assert encoded.dense[0, 0] == 0.0  # a missing number is the training mean


def test_the_hosts_gather_equals_the_twins(schema: Schema, encoder: FeatureEncoder, rng: np.random.Generator) -> None:
    tables = EmbeddingTables(encoder.table_rows(), encoder.layout.table_widths())
    arrays = {t: tables.weight(t).detach().numpy() for t in encoder.table_rows()}
    rows = np.concatenate([rng.integers(0, 31, (50, 1)), rng.integers(PAD_ROW, 8, (50, 4))], axis=1, dtype=np.int64).astype(
        np.int32
    )
    ours = gather(encoder.layout.item, rows, arrays)
    theirs = tables.gather(encoder.layout.item, torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_missing_multi_value_is_zeros_on_both_sides_even_with_one_slot(schema: Schema, encoder: FeatureEncoder) -> None:
    layout = encoder.layout.item
    single = GroupLayout("item", (replace(layout.slots[1], values=1),), ())
    tables = EmbeddingTables(encoder.table_rows(), encoder.layout.table_widths())
    arrays = {t: tables.weight(t).detach().numpy() for t in encoder.table_rows()}
    rows = np.array([[PAD_ROW], [3]], dtype=np.int32)
    ours, theirs = gather(single, rows, arrays), tables.gather(single, torch.from_numpy(rows)).detach().numpy()
    assert np.array_equal(ours, theirs)
    assert not ours[0].any()


def test_histories_are_relative_to_the_newest_event_so_a_shift_in_time_changes_nothing(
    schema: Schema, encoder: FeatureEncoder
) -> None:
    event = schema.event("click")
    history = missing_records(event_dtype(event), 4)
    history["time_ms"] = [1_000, 5_000, 60_000, 61_000]
    later = history.copy()
    later["time_ms"] += 86_400_000
    a = encoder.encode_histories(event, [history], [61_000], 6)
    b = encoder.encode_histories(event, [later], [61_000 + 86_400_000], 6)
    assert np.array_equal(a.events.dense, b.events.dense)
    assert np.array_equal(a.age_s, b.age_s)
    assert a.age_s[0].tolist() == [60.0, 56.0, 1.0, 0.0, 0.0, 0.0]
    assert a.lengths.tolist() == [4]


def test_derived_context_is_computed_from_the_request_time(schema: Schema, encoder: FeatureEncoder) -> None:
    records = missing_records(feature_dtype(f for f in schema.context if f.derived is None), 3)
    times = np.array([13 * 3_600_000, 13 * 3_600_000, 14 * 3_600_000])
    encoded = encoder.encode_context(records, times, np.array([-1, 13 * 3_600_000 - 5_000, 13 * 3_600_000]))
    names = list(encoder.layout.context.dense)
    since, hour = encoded.dense[:, names.index("since")], encoded.dense[:, names.index("hour")]
    assert since[0] == 0.0  # no history: missing
    assert since[1] < since[2]
    assert hour[0] == hour[1] < hour[2]


def test_values_that_do_not_fit_are_named(schema: Schema) -> None:
    records = missing_records(feature_dtype(schema.item_features), 2)
    genres, popularity = schema.item_features
    with pytest.raises(FieldError, match="popularity: expected numbers, found str"):
        fill_scalar_column(records, popularity, ["a", "b"], schema.hash, "popularity")
    with pytest.raises(FieldError, match="popularity: expected finite numbers, found inf"):
        fill_scalar_column(records, popularity, [1.0, float("inf")], schema.hash, "popularity")
    with pytest.raises(FieldError, match=r"expected 2 value\(s\), found 3"):
        fill_scalar_column(records, popularity, [1.0, 2.0, 3.0], schema.hash, "popularity")
    with pytest.raises(FieldError, match="genres: expected string ids, found int 7"):
        fill_multi_column(records, genres, [7], [0, 1, 1], schema.hash, "genres")
    with pytest.raises(FieldError, match="genres: expected at most 4 values per row, found 5"):
        fill_multi_column(records, genres, ["x"] * 5, [0, 5, 5], schema.hash, "genres")
    with pytest.raises(FieldError, match=r"genres.offsets: expected 3 offsets from 0 to 2, found 2 offsets"):
        fill_multi_column(records, genres, ["x", "y"], [0, 2], schema.hash, "genres")


def test_stats_survive_json(encoder: FeatureEncoder) -> None:
    again = FeatureStats.from_json(encoder.stats.to_json(), encoder.stats.vocabularies)
    assert again.moments == dict(encoder.stats.moments)
    assert again.boundaries == dict(encoder.stats.boundaries)
    assert MISSING_KEY not in encoder.stats.vocabularies["genre"]
