"""Shape buckets: history levels depend on the user alone, rows are padded little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import parse_yaml
from model.schema import Schema
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets, eighth_octaves, powers_of_two, round_up
from tests.serving.random_artifact import SCHEMA


@given(st.integers(8, 5000), st.data())
def test_padding_of_candidates_stays_below_an_eighth(largest: int, data: st.DataObject) -> None:
    buckets = eighth_octaves(largest)
    assert buckets[-1] == largest
    assert list(buckets) == sorted(set(buckets))
    count = data.draw(st.integers(1, largest))
    padded = round_up(buckets, count)
    assert count <= padded <= max(24, count + 7, count * 1.125 + 1)


def test_powers_of_two_end_at_the_limit() -> None:
    assert powers_of_two(1) == (1,)
    assert powers_of_two(6) == (1, 2, 4, 6)
    assert powers_of_two(8) == (1, 2, 4, 8)


def test_one_level_for_all_event_types() -> None:
    shapes = ShapeBuckets(parse_yaml(Schema, SCHEMA), CoreOptions())
    assert shapes.levels[0] == {"click": 8, "impression": 8}
    assert shapes.levels[-1] == {"click": 64, "impression": 32}
    assert shapes.level({"click": 0, "impression": 0}) == 0
    assert shapes.level({"click": 33, "impression": 0}) == len(shapes.levels) - 2
    assert shapes.level({"click": 49, "impression": 0}) == len(shapes.levels) - 1
    with pytest.raises(ValueError, match="history lengths: expected at most"):
        shapes.level({"click": 0, "impression": 33})
