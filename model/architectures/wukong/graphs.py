"""Torch side of Wukong without sequences: one `WukongExpert` per layer over user and candidate tokens, then a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.graphs import EncodeGraph, Given, ScoreGraph, features
from model.architectures.joined import CandidateTokens
from model.architectures.terms import FeatureWidths
from model.architectures.wukong.config import WukongRankerConfig
from model.layers.dropout import HiddenDropout
from model.layers.tokens import FlatTokens
from model.layers.wukong import WukongExpert
from model.schema import Schema
from model.signature import REQUEST_INDEX


class EncodeUser(EncodeGraph):
    """User features → user tokens."""

    def __init__(self, schema: Schema, config: WukongRankerConfig) -> None:
        super().__init__(schema, config)
        self.tokens = FlatTokens(FeatureWidths.of(schema).user, config.user_tokens, config.width)

    def encode(self, given: Given) -> tuple[Tensor, ...]:
        return (self.tokens(features(given, "user")),)


class ScoreCandidates(ScoreGraph):
    """Layers of x ← LN([FMB(x) ‖ LCB(x)] + residual) (eq. 1–4), flattened into the head."""

    def __init__(self, schema: Schema, config: WukongRankerConfig) -> None:
        super().__init__(schema, config)
        widths = FeatureWidths.of(schema)
        tokens = config.user_tokens + config.candidate_tokens
        self.tokens = CandidateTokens(widths.context, widths.item, config.candidate_tokens, config.width)
        self.layers = nn.ModuleList(
            WukongExpert(tokens, tokens, config.width, config.fm_rank, config.hidden) for _ in range(config.layers)
        )
        self.head = nn.Linear(tokens * config.width, config.head_hidden)
        self.dropout = HiddenDropout()
        self.logits = nn.Linear(config.head_hidden, widths.tasks)

    def score(self, given: Given) -> Tensor:
        user = given["state_tokens"].index_select(0, given[REQUEST_INDEX])
        x = torch.cat([user, self.tokens(given)], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.logits(self.dropout(F.silu(self.head(x.flatten(1)))))
