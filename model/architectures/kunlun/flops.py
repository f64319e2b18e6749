"""FLOPs of Kunlun's parts as closed formulas (model_spec §10). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from model.architectures.kunlun.options import Attention, EventTokens, Pffn, Pooling, TowerConfig, WukongConfig
from model.architectures.terms import FeatureWidths, Terms, linear, row_linear

if TYPE_CHECKING:
    from model.architectures.kunlun.config import ExactConfig, KunlunConfig
    from model.architectures.kunlun.stack import StackConfig


def encode_terms(config: KunlunConfig, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
    """`user_split`: the user stream of one user."""
    yield from token_terms(config, widths, lengths, executed)
    yield from stack_terms(config, widths, lengths, executed)
    tokens = config.user_tokens + config.summary_tokens(widths.caps)
    mixed = 2.0 * config.state_tokens * tokens * config.width
    yield "state", config.layers * (mixed + linear(config.state_tokens, config.width, config.candidate.width))
    if config.target_pooling is not None:
        for event in widths.caps:
            yield "target_keys", 2 * linear(lengths[event], config.tower(event).width, config.target_pooling.width)


def score_terms(
    config: KunlunConfig,
    widths: FeatureWidths,
    requests: int,
    candidates: int,
    executed: bool,
    lengths: Mapping[str, int],
) -> Terms:
    """`user_split`: the candidate stream."""
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


def exact_score_terms(
    config: ExactConfig,
    widths: FeatureWidths,
    requests: int,
    candidates: int,
    executed: bool,
    lengths: Mapping[str, int],
) -> Terms:
    """`exact`: the whole stack for every candidate; engines run it on histories padded to the caps."""
    flat, head = config.candidate_tokens * config.width, config.head
    yield "item_tokens", linear(candidates, widths.item, flat)
    yield "context_tokens", row_linear(requests, widths.context, flat, executed)
    for part, flops in stack_terms(config, widths, widths.caps if executed else lengths, executed):
        yield part, candidates * flops
    yield "head", 2.0 * candidates * head.tokens * config.interacting_tokens * config.width
    yield "head", linear(candidates, head.tokens * config.width, head.hidden) + linear(candidates, head.hidden, widths.tasks)


def token_terms(config: StackConfig, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
    """User tokens and history tokens of one user."""
    yield "user_tokens", row_linear(1, widths.user, config.user_tokens * config.width, executed)
    for event, inputs in widths.events.items():
        steps, width = lengths[event], config.tower(event).width
        yield "history_tokens", linear(steps, inputs, width) + linear(steps, width, width)
        if config.event_tokens is EventTokens.MASKNET:
            yield "history_tokens", linear(steps, inputs, width) + linear(steps, width, inputs)


def stack_terms(config: StackConfig, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
    """All layers on one sample: the towers' steps and Global Interaction."""
    towers, caps = {event: config.tower(event) for event in widths.caps}, config.caps(widths.caps)
    for layer in range(config.layers):
        active = {event: tower for event, tower in towers.items() if layer < tower.layers}
        if config.is_global(layer):
            if active and config.pffn is not Pffn.FFN:
                yield "context_summary", context_summary(config)
            for event, tower in active.items():
                yield from pffn(config, tower, lengths[event])
                yield "seed_pooling", seed_pooling(lengths[event], tower)
                yield "lift", linear(tower.summary_tokens, tower.width, config.width)
        for event, tower in active.items():
            if config.attends(event, layer):
                yield "self_attention", self_attention(lengths[event], caps[event], tower, executed)
        interaction = wukong(config.user_interaction, config.interacting_tokens, config.width, config.summary_tokens(towers))
        yield "user_interaction", interaction


def seed_queries(config: StackConfig, widths: FeatureWidths) -> Terms:
    """Seed projections of the pooling, which depend on no input."""
    for tower in map(config.tower, widths.caps):
        pools = sum(config.is_global(layer) for layer in range(tower.layers))
        yield "seed_queries", 2.0 * seeds_of(tower) * tower.width**2 * pools


def context_summary(config: StackConfig) -> float:
    """Weight Generation: token mix n → n_kv, then a two-layer network."""
    mix = 2.0 * config.interacting_tokens * config.n_kv * config.width
    return mix + 2 * linear(config.n_kv, config.width, config.width)


def pffn(config: StackConfig, tower: TowerConfig, steps: int) -> Terms:
    """The sequence's update in a global layer."""
    if config.pffn is not Pffn.FFN:
        yield "generated_weights", 2 * linear(config.n_kv, config.width, tower.width)
    if config.pffn is Pffn.GENERATED_LINEAR:
        yield "generated_weights", 2.0 * tower.width * config.n_kv * tower.width
        yield "generated_linear", linear(steps, tower.width, tower.width)
    else:
        yield config.pffn.value, gdpa(steps, config.n_kv, tower.width)


def gdpa(steps: int, n_kv: int, width: int) -> float:
    """Both products of generalized dot-product attention, all heads."""
    return 4.0 * steps * n_kv * width


def seeds_of(tower: TowerConfig) -> int:
    """Learned queries of a tower's pooling."""
    return tower.n_tokens if tower.pooling is Pooling.PMA else tower.n_seeds


def seed_pooling(steps: int, tower: TowerConfig) -> float:
    """K and V projections, attention of the seeds, output projection; HSP: SumKron compression."""
    width, seeds, tokens = tower.width, seeds_of(tower), tower.n_tokens
    attention = 2 * linear(steps, width, width) + 4.0 * seeds * steps * width + linear(seeds, width, width)
    if tower.pooling is Pooling.PMA:
        return attention
    return attention + 2.0 * tower.kronecker_rank * (seeds * tokens * width + tokens * width**2)


def self_attention(steps: int, cap: int, tower: TowerConfig, executed: bool) -> float:
    """Q, K, V, O projections, scores and values; `executed` counts the form that engines run."""
    pairs = executed_pairs(steps, cap, tower) if executed else attended_pairs(steps, tower)
    return 4 * linear(steps, tower.width, tower.width) + 4.0 * tower.width * pairs


def attended_pairs(steps: int, tower: TowerConfig) -> int:
    """(query, key) pairs that a tower's self-attention asks for."""
    match tower.attention:
        case Attention.DENSE:
            return steps * steps
        case Attention.BLOCK:
            return block_pairs(steps, tower.window)
        case Attention.WINDOW:
            return window_pairs(steps, tower.window)


def executed_pairs(steps: int, cap: int, tower: TowerConfig) -> int:
    """Pairs computed by the exported graph: blocks of w × w or w × 3w; all pairs where these would not be fewer."""
    blocks = -(-steps // tower.window)
    match tower.attention:
        case Attention.BLOCK if cap > tower.window:
            return blocks * tower.window**2
        case Attention.WINDOW if cap > tower.window + 1:
            return blocks * 3 * tower.window**2
        case _:
            return steps * steps


def window_pairs(steps: int, window: int) -> int:
    """(query, key) pairs with |i − j| ≤ window."""
    return steps * (2 * window + 1) - window * (window + 1) if steps > window else steps * steps


def block_pairs(steps: int, block: int) -> int:
    """(query, key) pairs of the same block."""
    return steps // block * block**2 + (steps % block) ** 2


def wukong(mix: WukongConfig, tokens: int, width: int, summary_tokens: int) -> float:
    """All experts of one layer over [tokens ‖ summary_tokens]: FM, its network, linear compression and residual."""
    out, inputs = tokens // mix.experts, mix.inputs(tokens, summary_tokens)
    fm, projection = (out + 1) // 2, inputs * mix.fm_rank
    expert = 4.0 * projection * width
    expert += linear(1, projection, mix.hidden) + linear(1, mix.hidden, fm * width)
    expert += 2.0 * ((out - fm) + out) * inputs * width
    if mix.attentive:
        compressed = mix.fm_rank * width
        expert += 2.0 * inputs * compressed + linear(1, compressed, mix.hidden) + linear(1, mix.hidden, projection)
    return mix.experts * expert


def gated_unit(requests: int, candidates: int, flat: int, user: int, hidden: int) -> float:
    """One layer of the candidate stream; the user part is multiplied once per request."""
    return linear(candidates, flat, 2 * hidden) + linear(requests, user, 2 * hidden) + linear(candidates, hidden, flat)
