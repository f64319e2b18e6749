"""Exact matrix-product FLOPs of the two graphs as closed formulas (model_spec §10, `user_split` wiring).

One multiply-add is 2 FLOPs; biases, norms, activations and gathers are not counted. The scheduler
prices work with it, the metrics derive MFU from it, and the manifest stores its widths
(`FlopModel.to_json`). Lengths given as *real* lengths yield useful work; `executed=True` with padded
lengths yields what an engine runs. Torch-free; exactness is tested against torch's own counter.

Cost: a few microseconds per call (no arrays, no caching).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from model.features import FeatureLayout, GroupLayout
from model.model_config import PRODUCT_WIDTH, ModelConfig, TowerConfig, WukongConfig
from model.schema import Schema

FORMULA_VERSION = 1


@dataclass(frozen=True)
class FlopBreakdown:
    """FLOPs by part; parts are named after the modules that do the work."""

    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @classmethod
    def of(cls, terms: Iterator[tuple[str, float]]) -> FlopBreakdown:
        parts: dict[str, float] = {}
        for name, flops in terms:
            parts[name] = parts.get(name, 0.0) + flops
        return cls(parts)


@dataclass(frozen=True)
class FlopModel:
    """The formulas' inputs: the model configuration and the feature widths that the schema implies."""

    config: ModelConfig
    user_inputs: int
    item_inputs: int
    context_inputs: int
    tasks: int
    event_inputs: Mapping[str, int]
    caps: Mapping[str, int]

    def encode(self, lengths: Mapping[str, int], *, executed: bool = False) -> FlopBreakdown:
        """One user with the given history length per event type."""
        return FlopBreakdown.of(self._encode_terms(lengths, executed))

    def score(self, requests: int, candidates: int, *, executed: bool = False) -> FlopBreakdown:
        """`candidates` in all, over `requests` user states; `executed`: as engines run it."""
        return FlopBreakdown.of(self._score_terms(requests, candidates, executed))

    @cached_property
    def per_candidate(self) -> float:
        """FLOPs that one more candidate adds."""
        return self.score(0, 1).total

    @cached_property
    def per_request(self) -> float:
        """FLOPs of a request before its first candidate."""
        return self.score(1, 0).total

    def seed_queries(self) -> float:
        """HSP seed projections: once per call, constant, and folded away by engines; part of no other figure."""
        return sum(
            2.0 * tower.n_seeds * tower.width**2 * ((tower.layers + 1) // 2) for tower in map(self.config.tower, self.caps)
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest's form: the widths; the configuration is beside it."""
        return {
            "formula_version": FORMULA_VERSION,
            "user_inputs": self.user_inputs,
            "item_inputs": self.item_inputs,
            "context_inputs": self.context_inputs,
            "tasks": self.tasks,
            "event_inputs": dict(self.event_inputs),
            "caps": dict(self.caps),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], config: ModelConfig) -> FlopModel:
        """Inverse of `to_json`; raises `ValueError` for formulas of another version."""
        if data.get("formula_version") != FORMULA_VERSION:
            raise ValueError(f"flops.formula_version: expected {FORMULA_VERSION}, found {data.get('formula_version')!r}")
        return cls(
            config,
            user_inputs=int(data["user_inputs"]),
            item_inputs=int(data["item_inputs"]),
            context_inputs=int(data["context_inputs"]),
            tasks=int(data["tasks"]),
            event_inputs=dict(data["event_inputs"]),
            caps=dict(data["caps"]),
        )

    def _encode_terms(self, lengths: Mapping[str, int], executed: bool) -> Iterator[tuple[str, float]]:
        config = self.config
        towers = {event: config.tower(event) for event in self.caps}
        summary_tokens = sum(tower.n_tokens for tower in towers.values())
        yield (
            "user_tokens",
            linear(1, padded(self.user_inputs) if executed else self.user_inputs, config.user_tokens * config.width),
        )
        for event, tower in towers.items():
            yield "history_tokens", history_tokens(lengths[event], self.event_inputs[event], tower.width)
        for layer in range(config.layers):
            active = {event: tower for event, tower in towers.items() if layer < tower.layers}
            if layer % 2 == 0 and active:
                yield "context_summary", context_summary(config)
            for event, tower in active.items():
                if layer % 2 == 0:
                    yield "generated_weights", 2 * linear(config.n_kv, config.width, tower.width)
                    yield "gdpa", gdpa(lengths[event], config.n_kv, tower.width)
                    yield "seed_pooling", seed_pooling(lengths[event], tower)
                    yield "lift", linear(tower.n_tokens, tower.width, config.width)
                else:
                    yield "self_attention", self_attention(lengths[event], self.caps[event], tower, executed)
            yield "user_interaction", wukong(config.user_interaction, config.user_tokens, config.width, summary_tokens)
            yield "state", state(config, config.user_tokens + summary_tokens)

    def _score_terms(self, requests: int, candidates: int, executed: bool) -> Iterator[tuple[str, float]]:
        stream = self.config.candidate
        flat, user = stream.tokens * stream.width, self.config.state_tokens * stream.width
        yield "item_tokens", linear(candidates, self.item_inputs, flat)
        yield "context_tokens", linear(requests, padded(self.context_inputs) if executed else self.context_inputs, flat)
        if stream.hidden is not None:
            yield "gated_units", self.config.layers * gated_unit(requests, candidates, flat, user, stream.hidden)
        if stream.wukong is not None:
            expert = wukong(stream.wukong, stream.tokens, stream.width, self.config.state_tokens)
            yield "candidate_interaction", self.config.layers * candidates * expert
        yield "head", linear(candidates, flat, stream.head_hidden) + linear(requests, user, stream.head_hidden)
        yield "head", linear(candidates, stream.head_hidden, self.tasks)


def flop_model(schema: Schema, config: ModelConfig) -> FlopModel:
    """The formulas of a model on a schema."""
    layout = FeatureLayout(schema)
    return FlopModel(
        config,
        user_inputs=_inputs(layout.user),
        item_inputs=_inputs(layout.item),
        context_inputs=_inputs(layout.context),
        tasks=len(schema.tasks),
        event_inputs={e.name: _inputs(layout.events[e.name]) for e in schema.events},
        caps={e.name: e.cap for e in schema.events},
    )


def encode_flops(config: ModelConfig, schema: Schema, lengths: Mapping[str, int]) -> FlopBreakdown:
    """Useful FLOPs of encoding one user."""
    return flop_model(schema, config).encode(lengths)


def score_flops(config: ModelConfig, schema: Schema, requests: int, candidates: int) -> FlopBreakdown:
    """FLOPs of scoring `candidates` in all over `requests` user states."""
    return flop_model(schema, config).score(requests, candidates)


def padded(inputs: int) -> int:
    """The inner width that the graphs run (`model.layers.tokens.row_invariant_linear`)."""
    return inputs + -inputs % PRODUCT_WIDTH


def linear(rows: int, inputs: int, outputs: int) -> float:
    """[rows, inputs] · [inputs, outputs]."""
    return 2.0 * rows * inputs * outputs


def history_tokens(steps: int, inputs: int, width: int) -> float:
    """Two-layer token network: inputs → width → width."""
    return linear(steps, inputs, width) + linear(steps, width, width)


def context_summary(config: ModelConfig) -> float:
    """Weight Generation: token mix n → n_kv, then a two-layer network."""
    mix = 2.0 * config.user_tokens * config.n_kv * config.width
    return mix + 2 * linear(config.n_kv, config.width, config.width)


def gdpa(steps: int, n_kv: int, width: int) -> float:
    """Both products of generalized dot-product attention, all heads."""
    return 4.0 * steps * n_kv * width


def seed_pooling(steps: int, tower: TowerConfig) -> float:
    """HSP: K and V projections, attention of the seeds, output projection, SumKron compression."""
    width, seeds, tokens = tower.width, tower.n_seeds, tower.n_tokens
    attention = 2 * linear(steps, width, width) + 4.0 * seeds * steps * width + linear(seeds, width, width)
    return attention + 2.0 * tower.kronecker_rank * (seeds * tokens * width + tokens * width**2)


def self_attention(steps: int, cap: int, tower: TowerConfig, executed: bool) -> float:
    """Q, K, V, O projections and windowed scores and values; `executed` counts the form that engines run."""
    pairs = executed_pairs(steps, cap, tower.window) if executed else window_pairs(steps, tower.window)
    return 4 * linear(steps, tower.width, tower.width) + 4.0 * tower.width * pairs


def window_pairs(steps: int, window: int) -> int:
    """(query, key) pairs with |i − j| ≤ window."""
    return steps * (2 * window + 1) - window * (window + 1) if steps > window else steps * steps


def executed_pairs(steps: int, cap: int, window: int) -> int:
    """Pairs computed by the exported graph: all of them where the window covers the cap, else blocks of w × 3w."""
    if cap <= window + 1:
        return steps * steps
    return -(-steps // window) * window * 3 * window


def wukong(mix: WukongConfig, tokens: int, width: int, summary_tokens: int) -> float:
    """All experts of one layer over [tokens ‖ summary_tokens]: FM, its network, linear compression and residual."""
    out = tokens // mix.experts
    inputs, fm = out + summary_tokens, (out + 1) // 2
    expert = 4.0 * inputs * mix.fm_rank * width
    expert += linear(1, inputs * mix.fm_rank, mix.hidden) + linear(1, mix.hidden, fm * width)
    expert += 2.0 * ((out - fm) + out) * inputs * width
    return mix.experts * expert


def state(config: ModelConfig, tokens: int) -> float:
    """R_l = W · [X ‖ H] · P."""
    mixed = 2.0 * config.state_tokens * tokens * config.width
    return mixed + linear(config.state_tokens, config.width, config.candidate.width)


def gated_unit(requests: int, candidates: int, flat: int, user: int, hidden: int) -> float:
    """One layer of the candidate stream; the user part is multiplied once per request."""
    return linear(candidates, flat, 2 * hidden) + linear(requests, user, 2 * hidden) + linear(candidates, hidden, flat)


def _inputs(group: GroupLayout) -> int:
    return group.embedded_width + len(group.dense)
