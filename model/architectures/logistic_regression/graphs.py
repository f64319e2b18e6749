"""Torch side of logistic regression: effects of groups of features, added up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, features
from model.architectures.logistic_regression.config import LogisticRegressionConfig
from model.features import FeatureLayout, GroupLayout
from model.schema import Schema
from model.signature import REQUEST_INDEX


class Effects(nn.Module):
    """Features [N, embedded ‖ dense] of a group → their part of the logits [N, tasks].

    Column t of each embedded slot counts once for task t (a constant selection), each number with a weight.
    """

    def __init__(self, group: GroupLayout, tasks: int) -> None:
        super().__init__()
        selection, column = torch.zeros(tasks, group.embedded_width), 0
        for slot in group.slots:
            selection[:, column : column + tasks] += torch.eye(tasks)
            column += slot.width
        self.selection: Tensor
        self.register_buffer("selection", selection)
        self.weight = nn.Parameter(torch.zeros(tasks, len(group.dense))) if group.dense else None

    def forward(self, features: Tensor) -> Tensor:
        parts = [self.selection] if self.weight is None else [self.selection, self.weight]
        return F.linear(features, torch.cat(parts, dim=1))


class EncodeUser(EncodeGraph):
    """User features → the user's part of the logits."""

    def __init__(self, schema: Schema, config: LogisticRegressionConfig) -> None:
        super().__init__(schema, config)
        self.user = Effects(FeatureLayout(schema).user, len(schema.tasks))

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        return (self.user(features(given, "user")),)


class ScoreCandidates(ScoreGraph):
    """User's part + context's part + item's part + intercept."""

    def __init__(self, schema: Schema, config: LogisticRegressionConfig) -> None:
        super().__init__(schema, config)
        layout, tasks = FeatureLayout(schema), len(schema.tasks)
        has_context = layout.context.slots or layout.context.dense
        self.context = Effects(layout.context, tasks) if has_context else None
        self.item = Effects(layout.item, tasks)
        self.intercept = nn.Parameter(torch.zeros(tasks))

    def score(self, given: Given) -> Tensor:
        request = given["state_effect"] + self.intercept
        if self.context is not None:
            request = request + self.context(features(given, "context"))
        return request.index_select(0, given[REQUEST_INDEX]) + self.item(features(given, "item"))
