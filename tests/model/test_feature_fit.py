"""Statistics fitted block by block are those of all records at once."""

from __future__ import annotations

import numpy as np
import pytest

from model import feature_fit
from model.feature_fit import FeatureFit
from model.features import FeatureStats
from model.records import event_dtype, feature_dtype, missing_records
from model.schema import FeatureKind, Schema


def fitted(schema: Schema, blocks: int) -> FeatureStats:
    """On random records, in so many blocks."""
    rng, fit = np.random.default_rng(0), FeatureFit(schema)
    stored = [f for f in schema.context if f.derived is None]
    contexts, items = missing_records(feature_dtype(stored), 900), missing_records(feature_dtype(schema.item_features), 900)
    for records, features in ((contexts, stored), (items, schema.item_features)):
        for f in features:
            column = records[f.name]
            column[...] = (
                rng.gamma(2.0, 3.0, column.shape) if f.kind is FeatureKind.NUMERIC else rng.integers(1, 50, column.shape)
            )
    events = {e.name: np.zeros(900, event_dtype(e)) for e in schema.events}
    for records in events.values():
        records["item"] = rng.integers(1, 80, 900)
    users, times, shown = rng.integers(1, 30, 900), rng.integers(0, 10**9, 900), rng.zipf(1.5, 900) % 200
    for part in np.array_split(np.arange(900), blocks):
        fit.requests(contexts[part], users[part], times[part], times[part] - 1000)
        fit.items(items[part])
        fit.shown(shown[part].astype(np.int64))
        for name, records in events.items():
            fit.events(name, records[part])
    return fit.stats()


def test_blocks_make_no_difference(schema: Schema) -> None:
    whole, parts = fitted(schema, 1), fitted(schema, 7)
    assert whole.boundaries == parts.boundaries
    assert whole.vocabularies.keys() == parts.vocabularies.keys()
    for name, keys in whole.vocabularies.items():
        assert np.array_equal(keys, parts.vocabularies[name]), name
    assert whole.moments.keys() == parts.moments.keys()
    for key, (mean, deviation) in whole.moments.items():
        assert parts.moments[key] == (pytest.approx(mean, rel=1e-12), pytest.approx(deviation, rel=1e-12))


def test_quantiles_of_very_many_values_come_from_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_fit, "QUANTILE_VALUES", 100)
    values = feature_fit._Values()
    for block in np.array_split(np.arange(1000.0), 13):
        values.add(block)
    assert 50 < len(values.values) <= 100
    assert set(np.diff(values.values)) == {float(values.every)}
    assert np.quantile(values.values, 0.5) == pytest.approx(500, abs=16)


def test_moments_are_those_of_numpy() -> None:
    moments, values = feature_fit._Moments(), np.random.default_rng(0).gamma(2.0, 3.0, 501)
    for block in np.split(values, [3, 3, 400]):
        moments.add(block)
    assert moments.figures == (pytest.approx(values.mean(), rel=1e-12), pytest.approx(values.std(), rel=1e-12))
    assert feature_fit._Moments().figures == (0.0, 1.0)
