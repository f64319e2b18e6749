"""Kunlun in its two wirings: `user_split`, which is made for serving, and `exact`, which is the paper's. Torch-free.

Names follow the paper (arXiv:2602.10016) where it has one. `variant` picks the wiring (default `user_split`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kernels.tensorrt.nodes import GDPA, PFFN, Node, SeedPooling, WindowAttention
from model.architectures.base import ArchitectureConfig, RaggedCall
from model.architectures.kunlun import flops
from model.architectures.kunlun.options import (
    CandidateStreamConfig,
    Pffn,
    Pooling,
    Positive,
    TargetPoolingConfig,
    TokenHeadConfig,
)
from model.architectures.kunlun.stack import StackConfig
from model.architectures.terms import FeatureWidths, ProductWidths, Terms
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph


class KunlunConfig(StackConfig):
    """`user_split`: the stack runs once per user state; candidates have a thin stream of their own (user_split.md)."""

    variant: Literal["user_split"] = "user_split"
    state_tokens: Positive
    candidate: CandidateStreamConfig
    target_pooling: TargetPoolingConfig | None = None

    @classmethod
    def variant_of(cls, data: Mapping[str, Any]) -> type[ArchitectureConfig]:
        return ExactConfig if data.get("variant") == "exact" else KunlunConfig

    @property
    def reads_last_sequence(self) -> bool:
        return self.target_pooling is not None

    @property
    def layer_states(self) -> tuple[str, ...]:
        """Names of R_0 … R_{L-1}."""
        return tuple(f"state_{layer}" for layer in range(self.layers))

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """R_0 … R_{L-1}, each [rows, state_tokens, candidate width]; with target pooling also its memory per event type."""
        shape = (rows, self.state_tokens, self.candidate.width)
        specs = [TensorSpec(name, "float32", shape) for name in self.layer_states]
        if self.target_pooling is not None:
            for event in schema.events:
                sizes = (event.cap, self.target_pooling.width), (event.cap, self.target_pooling.width), (event.cap,)
                specs += [TensorSpec(n, "float32", (rows, *s)) for n, s in zip(memory_states(event.name), sizes, strict=True)]
        return tuple(specs)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        return flops.encode_terms(self, widths, lengths, executed)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        return flops.score_terms(self, widths, requests, candidates, executed, lengths)

    def constant_terms(self, widths: FeatureWidths, graph: str) -> Terms:
        return flops.seed_queries(self, widths) if graph == "encode_user" else iter(())

    def product_widths(self, widths: FeatureWidths) -> ProductWidths:
        towers, mix = [self.tower(event) for event in widths.caps], self.user_interaction
        streams = (self.width, self.candidate.width, *(tower.width for tower in towers))
        if self.target_pooling is not None:
            streams = (*streams, self.target_pooling.width)  # its products have a batch's candidates as rows: never few
        seen_by_expert = mix.inputs(self.user_tokens, self.summary_tokens(widths.caps))
        inner = (*streams, seen_by_expert * mix.fm_rank, mix.hidden, self.state_tokens * self.candidate.width)
        if mix.attentive:
            inner = (*inner, mix.fm_rank * self.width)
        return ProductWidths(streams, inner)

    @property
    def has_jagged_form(self) -> bool:
        """The ragged operators know one activation for all heads and no product that differs per row."""
        one = isinstance(self.activation, str) or len(set(self.activation)) == 1
        return one and self.pffn is not Pffn.GENERATED_LINEAR

    def ragged_calls(self, schema: Schema) -> tuple[RaggedCall, ...]:
        """Sizes that no kernel depends on (windows, longest histories, scales) are left at any value."""
        activation = self.activation if isinstance(self.activation, str) else self.activation[0]
        found: dict[RaggedCall, None] = {}
        for event in schema.events:
            tower = self.tower(event.name)
            pooled = GDPA(activation=activation) if tower.pooling is Pooling.GDPA else SeedPooling(scale=1.0)
            nodes: dict[Node, bool] = {PFFN(activation=activation, n_kv=self.n_kv): True, pooled: True}
            nodes[WindowAttention(window=1, scale=1.0)] = any(self.attends(event.name, layer) for layer in range(self.layers))
            found |= {RaggedCall(n, tower.heads, tower.width // tower.heads): None for n, runs in nodes.items() if runs}
        return tuple(found)

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        from model.architectures.kunlun.graphs import KunlunEncode, KunlunScore

        return KunlunEncode(schema, self), KunlunScore(schema, self)


class ExactConfig(StackConfig):
    """`exact`: candidates are set tokens, so K and V, and with them every sequence after layer 0, are the candidate's own.

    Shared per user, as the state: user tokens, history tokens, and q̂ of layer 0. `candidate_tokens`: of item and context.
    It has no `product_widths`: in bf16 its small products are not known to give the same bits in every batch.
    """

    variant: Literal["exact"] = "exact"
    candidate_tokens: Positive
    head: TokenHeadConfig

    @property
    def token_fields(self) -> str:
        return "user_tokens + candidate_tokens"

    @property
    def interacting_tokens(self) -> int:
        return self.user_tokens + self.candidate_tokens

    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """User tokens [n_u, d]; per event type S_0 and q̂ [cap, d_e], ages [cap] and the length."""
        specs = [TensorSpec("user_tokens", "float32", (rows, self.user_tokens, self.width))]
        for event in schema.events:
            size = (event.cap, self.tower(event.name).width)
            tokens, normed, age, length = history_states(event.name)
            specs += [TensorSpec(tokens, "float32", (rows, *size)), TensorSpec(normed, "float32", (rows, *size))]
            specs += [TensorSpec(age, "float32", (rows, event.cap)), TensorSpec(length, "int64", (rows,))]
        return tuple(specs)

    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        return flops.token_terms(self, widths, lengths, executed)

    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        return flops.exact_score_terms(self, widths, requests, candidates, executed, lengths)

    def constant_terms(self, widths: FeatureWidths, graph: str) -> Terms:
        return flops.seed_queries(self, widths) if graph == "score_candidates" else iter(())

    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        from model.architectures.kunlun.exact_graphs import ExactEncode, ExactScore

        return ExactEncode(schema, self), ExactScore(schema, self)


def memory_states(event: str) -> tuple[str, str, str]:
    """State tensors of target pooling: keys, values and bias of one event type."""
    return f"target_keys_{event}", f"target_values_{event}", f"target_bias_{event}"


def history_states(event: str) -> tuple[str, str, str, str]:
    """State tensors of the `exact` wiring: tokens, q̂ of layer 0, ages and length of one event type."""
    return f"tokens_{event}", f"normed_{event}", f"age_{event}", f"length_{event}"
