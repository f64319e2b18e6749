"""Logistic regression with ids: logit = Σ of one weight per id or bucket, and one per number. Torch-free.

The weight of an id for task t is column t of its embedding row, so the tables hold the model and the one-hot vectors are never
formed. It reads user id (if the schema embeds it), user, context and item features and the history lengths; not the histories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from model.architectures.base import ArchitectureConfig
from model.architectures.terms import FeatureWidths, Terms, linear
from model.config import ConfigError
from model.features import FeatureLayout
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph


class LogisticRegressionConfig(ArchitectureConfig):
    """Has no hyper-parameters. Weights start at zero; tables need no more columns than there are tasks."""

    architecture: Literal["logistic_regression"] = "logistic_regression"

    @property
    def embedding_deviation(self) -> float:
        """A convex model: ids that training never saw keep the weight 0."""
        return 0.0

    def check_schema(self, schema: Schema) -> None:
        """Every table holds a weight per task."""
        for table, width in FeatureLayout(schema).table_widths().items():
            if width < len(schema.tasks):
                raise ConfigError(f"tables.{table}: expected a width of at least {len(schema.tasks)} (tasks), found {width}")

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """`state_effect` [rows, tasks]: the user's part of the logits."""
        return (TensorSpec("state_effect", "float32", (rows, len(schema.tasks))),)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        """See `ArchitectureConfig`."""
        yield "user_effects", linear(1, widths.user, widths.tasks)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        """See `ArchitectureConfig`."""
        yield "context_effects", linear(requests, widths.context, widths.tasks)
        yield "item_effects", linear(candidates, widths.item, widths.tasks)

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        """See `ArchitectureConfig`."""
        from model.architectures.logistic_regression.graphs import EncodeUser, ScoreCandidates

        return EncodeUser(schema, self), ScoreCandidates(schema, self)
