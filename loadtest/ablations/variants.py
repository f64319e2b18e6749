"""The variants of `make ablations`: what changes against the default, and what the paper (or its readers) reports for it.

The paper's figures are those of arXiv:2602.10016 as its readers give them: relative NE when the part is removed, throughput
and FLOPs of whole models of 6 to 180 GFLOPs on GPUs. They stand beside ours for orientation: sizes, data and hardware differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loadtest.ablations.trained import varied
from model.schema import Schema

DEFAULT = "default"
NOT_STATED = "not stated"
LAST_EVENT = "last event"
"""Stands for the name of the schema's last event type."""


@dataclass(frozen=True)
class Variant:
    """`changes`: merged into the default model (null removes a key). `question`: what the row answers."""

    name: str
    question: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: str = NOT_STATED

    def model(self, base: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
        """The whole model, from a base that names a preset."""
        changes = dict(self.changes)
        if LAST_EVENT in changes.get("towers", {}):
            changes["towers"] = {schema.events[-1].name: changes["towers"][LAST_EVENT]}
        return varied(base, changes)


SMALL_TOWER = {"width": 16, "heads": 2, "n_seeds": 8, "n_tokens": 2, "kronecker_rank": 2, "window": 4, "layers": 1}
EXACT = {
    "variant": "exact",
    "state_tokens": None,
    "candidate": None,
    "candidate_tokens": 4,
    "head": {"tokens": 2, "hidden": 32},
}
FULL_SIZE = {"tokens": 4, "width": 32, "head_hidden": 32, "hidden": None, "wukong": {"experts": 2, "fm_rank": 4, "hidden": 32}}

VARIANTS: tuple[Variant, ...] = (
    Variant(DEFAULT, "Kunlun in the `user_split` wiring, as configured for this data"),
    Variant("exact", "the paper's wiring: candidates are set tokens, so the whole stack runs per candidate", EXACT),
    Variant(
        "full-size candidates", "candidates in a stream of the user's own size", {"candidate": FULL_SIZE, "state_tokens": 12}
    ),
    Variant(
        "Wukong candidates",
        "the paper's experts in the thin candidate stream, in place of gated units",
        {"candidate": {"hidden": None, "wukong": {"experts": 1, "fm_rank": 4, "hidden": 64}}},
    ),
    Variant("target pooling", "candidates attend to the last S", {"target_pooling": {"seeds": 2, "width": 16}}),
    Variant(
        "target pooling, sigmoid",
        "the same without normalising over events",
        {"target_pooling": {"seeds": 2, "width": 16, "weights": "sigmoid"}},
    ),
    Variant("no GDPA", "K and V of the PFFN are learned, the same for every user", {"pffn": "ffn"}, "NE +0.04 %, QPS -8 %"),
    Variant("linear GDPA", "InterFormer's generated linear map", {"pffn": "generated_linear"}),
    Variant("GDPA scale 1/τ", "the paper's scale without our gain", {"scale": "paper"}),
    Variant("GDPA scale outside", "scores as they are, the sum over n_kv: the kernels' reading", {"scale": "kernel"}),
    Variant(
        "PMA", "as many seeds as summary tokens, no SumKron", {"default_tower": {"pooling": "pma"}}, "NE +0.08 %, QPS +8.8 %"
    ),
    Variant("GDPA pooling", "seeds with GDPA's activation in place of the softmax", {"default_tower": {"pooling": "gdpa"}}),
    Variant(
        "dense attention",
        "self-attention without a window",
        {"default_tower": {"attention": "dense"}},
        "window: NE neutral, QPS +31.1 %, FLOPs -29.5 %",
    ),
    Variant("block attention", "blocks of the window's size", {"default_tower": {"attention": "block"}}),
    Variant(
        "no CompSkip", "every layer runs everything", {"comp_skip": False}, "CompSkip: NE neutral, QPS +35 %, FLOPs -43.1 %"
    ),
    Variant(
        "event towers",
        "the last event type in a tower of half the width and one layer",
        {"towers": {LAST_EVENT: SMALL_TOWER}},
        "QPS +13 %, FLOPs -11 %",
    ),
    Variant("shared towers", "one tower for all event types", {"share_towers": True}),
    Variant(
        "one expert",
        "one Wukong expert in the user stream",
        {"user_interaction": {"experts": 1}},
        "QPS +4 % by expert parallelism",
    ),
    Variant("four experts", "four", {"user_interaction": {"experts": 4}}),
    Variant("full expert input", "experts see all set tokens, not a share", {"user_interaction": {"expert_input": "full"}}),
    Variant("attentive FM", "Y of the FM made from the sample's own tokens", {"user_interaction": {"attentive": True}}),
    Variant("post-norm attention", "LN(S + MHA(S)) in place of S + MHA(LN(S))", {"attention_norm": "post"}),
    Variant("no time encoding", "self-attention without ROTE", {"time_encoding": "none"}),
    Variant("position only", "RoPE, no time", {"time_encoding": "position"}),
    Variant("position plus time", "every rotary pair by both, not half of them by each", {"time_encoding": "sum"}),
    Variant("adjacent time", "time to the event before in place of age", {"time_encoding": "adjacent"}),
    Variant("no place embedding", "history tokens do not know their place from the newest event", {"place_embedding": False}),
    Variant("no recent tokens", "the newest tokens do not join the summary", {"default_tower": {"n_recent": 0}}),
    Variant("neither", "no places and no recent tokens", {"place_embedding": False, "default_tower": {"n_recent": 0}}),
    Variant(
        "places and recent tokens",
        "places from the newest event, and the 8 newest tokens of each tower in its summary",
        {"place_embedding": True, "default_tower": {"n_recent": 8}},
    ),
    Variant("MaskNet", "attributes of events scaled by a mask of all of them", {"event_tokens": "masknet"}),
)
