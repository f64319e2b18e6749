"""The torch twin of everything that is served: the two graphs of an architecture, and the embedding tables for training.

The graphs have their inputs named and ordered as in `model.signature`; they take embedding *rows* and hold no tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from model.architectures.base import ArchitectureConfig
from model.features import FeatureLayout
from model.layers.embedding import EmbeddingTables
from model.schema import Schema


class KunlunRanker(nn.Module):
    """A model of any architecture; raises `ConfigError` when the configuration does not fit the schema."""

    def __init__(self, schema: Schema, config: ArchitectureConfig, table_rows: Mapping[str, int]) -> None:
        super().__init__()
        config.check_schema(schema)
        self.schema, self.config = schema, config
        self.layout = FeatureLayout(schema)
        self.tables = EmbeddingTables(table_rows, self.layout.table_widths(), config.embedding_deviation)
        self.encode_user, self.score_candidates = config.graphs(schema)
