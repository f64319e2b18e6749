"""A small schema with every feature kind, and a tiny model on it."""

from __future__ import annotations

import pytest
import torch

from model.architectures.registry import load_preset
from model.config import parse_yaml
from model.ranker import KunlunRanker
from model.schema import Schema

SCHEMA = """
name: everything
tables:
  item: {width: 8}
  genre: {width: 4}
  surface: {width: 4, encoding: {kind: hash, buckets: 50}}
item: {id_type: string, table: item}
user:
  - {name: country, kind: categorical, table: surface}
  - {name: age, kind: numeric, buckets: {boundaries: [18, 30, 50], width: 3}}
context:
  - {name: surface, kind: categorical, table: surface}
  - {name: since, kind: numeric, log1p: true, derived: seconds_since_newest_event}
  - {name: hour, kind: numeric, derived: hour_of_day}
item_features:
  - {name: genres, kind: multi, table: genre, max_values: 4}
  - {name: popularity, kind: numeric, log1p: true}
request_columns: [bid]
events:
  - {name: click, cap: 12, attributes: [{name: dwell, kind: numeric}]}
  - {name: impression, cap: 24, attributes: [{name: where, kind: categorical, table: surface}]}
tasks: [{name: click}, {name: like, weight: 0.5}]
value: bid * p_click + p_like
slice: surface
"""
TABLE_ROWS = {"item": 40, "genre": 12, "surface": 51, "user.age": 5}


@pytest.fixture(scope="session")
def schema() -> Schema:
    return parse_yaml(Schema, SCHEMA)


@pytest.fixture
def model(schema: Schema) -> KunlunRanker:
    torch.manual_seed(0)
    return KunlunRanker(schema, load_preset("tiny"), TABLE_ROWS).eval()
