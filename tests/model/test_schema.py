"""The schema: what it accepts, and what it says when it does not."""

from __future__ import annotations

import numpy as np
import pytest

from model.config import ConfigError, parse_yaml
from model.hashing import MISSING_KEY, bucket_of, string_key, string_keys
from model.schema import HashSpec, Schema, schema_from_json
from model.value_expression import ValueExpression

BASE = """
name: shop
tables: {item: {width: 8}, genre: {width: 4}}
item: {table: item}
context: [{name: surface, kind: categorical, table: genre}]
item_features: [{name: genres, kind: multi, table: genre}]
request_columns: [bid]
events: [{name: click, cap: 10}]
tasks: [{name: click}]
value: bid * p_click
slice: surface
"""


def changed(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def test_a_schema_survives_json_and_keeps_its_digest() -> None:
    schema = parse_yaml(Schema, BASE)
    again = schema_from_json(schema.model_dump(mode="json"))
    assert again == schema
    assert again.digest == schema.digest
    assert parse_yaml(Schema, changed("cap: 10", "cap: 11")).digest != schema.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("item_features:", "item_feature:"), "item_feature: unknown key; did you mean 'item_features'"),
        (changed("{width: 8}", "{widht: 8}"), "tables.item.widht: unknown key; did you mean 'width'"),
        (
            changed("cap: 10", "cap: 10, capacity: 5"),
            "event type 'click': capacity 5 is below 18: cap 10",
        ),
        (changed("cap: 10", "cap: ten"), "events.0.cap: Input should be a valid integer.*found 'ten'"),
        (
            changed("kind: multi, table: genre", "kind: multi, table: genres"),
            "item_features.genres: table 'genres' is not declared",
        ),
        (changed("kind: multi, table: genre", "kind: multi"), "feature 'genres': a multi feature needs a `table`"),
        (changed("kind: multi, table: genre", "kind: numeric, table: genre"), "a numeric feature takes `buckets`, not `table`"),
        (changed("bid * p_click", "bid * p_clicks"), "value: unknown name 'p_clicks'; available: p_click, bid"),
        (changed("bid * p_click", "__import__('os')"), "is not allowed"),
        (changed("slice: surface", "slice: place"), "slice: 'place' is not a categorical context feature; there are: surface"),
        (changed("[{name: click}]", "[{name: click}, {name: click}]"), "tasks: declared twice: click"),
        (changed("name: shop", "name: Shop Two"), "name: String should match pattern.*found 'Shop Two'"),
        (changed("name: click, cap", "name: item, cap"), "events: 'item' is reserved here"),
        (
            changed("cap: 10}", "cap: 10, attributes: [{name: time_ms, kind: numeric}]}"),
            "attributes: 'time_ms' is reserved here",
        ),
        (changed("[{name: click, cap: 10}]", "[]"), "events: .*at least 1 item"),
        (changed("[bid]", "[bid, p_click]"), "request_columns and tasks: declared twice: p_click"),
        (changed("bid * p_click", "bid * p_click * 1e999"), "a number beyond 1e300 is not allowed"),
        ("- a list", "expected a mapping of keys, found list"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(Schema, text)


def test_value_expressions_evaluate_over_columns() -> None:
    columns = {"bid": np.array([1.0, 2.0]), "p_click": np.array([0.5, 0.25])}
    expression = ValueExpression.parse("max(bid, 1.5) * p_click ** 2 - -0.5")
    np.testing.assert_allclose(expression.evaluate(columns), [1.5 * 0.25 + 0.5, 2 * 0.0625 + 0.5])
    assert expression.names == {"bid", "p_click"}
    for text in ("bid.real", "bid[0]", "lambda: 1", "bid if 1 else 2", "pow(bid, 2)", "2 + 3"):
        with pytest.raises(ValueError, match="value expression"):
            ValueExpression.parse(text)


def test_string_keys_are_pinned_because_artifacts_depend_on_them() -> None:
    assert string_key("kunlun", HashSpec()) == -1327440984212133332
    assert string_keys(["a", "b"], HashSpec()).dtype == np.int64
    assert string_key("a", HashSpec(seed=1)) != string_key("a", HashSpec())


def test_hash_buckets_are_pinned_spread_integer_ids_and_keep_row_zero_for_missing() -> None:
    keys = np.arange(10_000, dtype=np.int64)
    rows = bucket_of(keys, 100)
    assert rows.min() == 1
    assert rows.max() == 100
    assert np.bincount(rows)[1:].std() < 0.3 * 100
    assert bucket_of(np.array([MISSING_KEY]), 100).tolist() == [0]
    assert bucket_of(np.array([1, 2, -7]), 1000).tolist() == [885, 122, 47]


def test_the_store_keeps_at_least_what_a_request_reads() -> None:
    for cap in (1, 4, 8, 100):
        event = parse_yaml(Schema, changed("cap: 10", f"cap: {cap}")).events[0]
        assert event.stored >= event.read_window > cap
