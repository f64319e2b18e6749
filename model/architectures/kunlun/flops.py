"""FLOPs of Kunlun's parts as closed formulas (model_spec §10), in the order in which the graphs run them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from model.architectures.terms import FeatureWidths, Terms, linear, row_linear

if TYPE_CHECKING:
    from model.architectures.kunlun.config import KunlunConfig, TowerConfig, WukongConfig


def encode_terms(config: KunlunConfig, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
    """The user stream of one user."""
    towers = {event: config.tower(event) for event in widths.caps}
    summary_tokens = sum(tower.n_tokens for tower in towers.values())
    yield "user_tokens", row_linear(1, widths.user, config.user_tokens * config.width, executed)
    for event, tower in towers.items():
        yield "history_tokens", history_tokens(lengths[event], widths.events[event], tower.width)
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
                yield "self_attention", self_attention(lengths[event], widths.caps[event], tower, executed)
        yield "user_interaction", wukong(config.user_interaction, config.user_tokens, config.width, summary_tokens)
        yield "state", state(config, config.user_tokens + summary_tokens)
    if config.target_pooling is not None:
        for event, tower in towers.items():
            yield "target_keys", 2 * linear(lengths[event], tower.width, config.target_pooling.width)


def score_terms(
    config: KunlunConfig,
    widths: FeatureWidths,
    requests: int,
    candidates: int,
    executed: bool,
    lengths: Mapping[str, int],
) -> Terms:
    """The candidate stream."""
    stream = config.candidate
    flat, user = stream.tokens * stream.width, config.state_tokens * stream.width
    yield "item_tokens", linear(candidates, widths.item, flat)
    yield "context_tokens", row_linear(requests, widths.context, flat, executed)
    if config.target_pooling is not None:
        rows, width = candidates * config.target_pooling.seeds, config.target_pooling.width
        yield "target_pooling", 2 * len(widths.caps) * linear(rows, width, flat)
        for event, cap in widths.caps.items():
            yield "target_pooling", 4.0 * rows * width * (requests * cap if executed else lengths[event])
    if stream.hidden is not None:
        yield "gated_units", config.layers * gated_unit(requests, candidates, flat, user, stream.hidden)
    if stream.wukong is not None:
        expert = wukong(stream.wukong, stream.tokens, stream.width, config.state_tokens)
        yield "candidate_interaction", config.layers * candidates * expert
    yield "head", linear(candidates, flat, stream.head_hidden) + linear(requests, user, stream.head_hidden)
    yield "head", linear(candidates, stream.head_hidden, widths.tasks)


def seed_queries(config: KunlunConfig, widths: FeatureWidths) -> Terms:
    """HSP seed projections, which depend on no input."""
    for tower in map(config.tower, widths.caps):
        yield "seed_queries", 2.0 * tower.n_seeds * tower.width**2 * ((tower.layers + 1) // 2)


def history_tokens(steps: int, inputs: int, width: int) -> float:
    """Two-layer token network: inputs → width → width."""
    return linear(steps, inputs, width) + linear(steps, width, width)


def context_summary(config: KunlunConfig) -> float:
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


def state(config: KunlunConfig, tokens: int) -> float:
    """R_l = W · [X ‖ H] · P."""
    mixed = 2.0 * config.state_tokens * tokens * config.width
    return mixed + linear(config.state_tokens, config.width, config.candidate.width)


def gated_unit(requests: int, candidates: int, flat: int, user: int, hidden: int) -> float:
    """One layer of the candidate stream; the user part is multiplied once per request."""
    return linear(candidates, flat, 2 * hidden) + linear(requests, user, 2 * hidden) + linear(candidates, hidden, flat)
