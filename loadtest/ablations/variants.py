"""The variants of `make ablations`: what changes against the default, and what the paper (or its readers) reports for it.

The paper's figures are those of arXiv:2602.10016 as its readers give them: relative NE when the part is removed, throughput
and FLOPs of whole models of 6 to 180 GFLOPs on GPUs. They stand beside ours for orientation: sizes, data and hardware differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT = "default"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Variant:
    """`changes`: merged into the default model (null removes a key). `question`: what the row answers."""

    name: str
    question: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: str = NOT_STATED


VARIANTS: tuple[Variant, ...] = (
    Variant(DEFAULT, "Kunlun in the `user_split` wiring, as the preset has it"),
    Variant(
        "linear GDPA",
        "GDPA without its activation: a linear map per user, as InterFormer's",
        {"activation": "raw"},
        "GDPA removed: NE +0.04 %, QPS -8 %",
    ),
    Variant("GDPA scale 1/τ", "the paper's scale without our gain", {"scale": "paper"}),
    Variant("window 1", "self-attention sees one neighbour on each side", {"default_tower": {"window": 1}}),
    Variant(
        "full attention",
        "no window",
        {"default_tower": {"window": 4096}},
        "window: NE neutral, QPS +31.1 %, FLOPs -29.5 %",
    ),
    Variant("one layer", "no self-attention, one HSP", {"layers": 1, "default_tower": {"layers": 1}}),
    Variant("five layers", "deeper", {"layers": 5, "default_tower": {"layers": 5}}),
    Variant(
        "event towers",
        "carts in a tower of half the width and one layer",
        {
            "towers": {
                "cart": {"width": 16, "heads": 2, "n_seeds": 8, "n_tokens": 2, "kronecker_rank": 2, "window": 4, "layers": 1}
            }
        },
        "QPS +13 %, FLOPs -11 %",
    ),
    Variant(
        "one expert",
        "one Wukong expert in the user stream",
        {"user_interaction": {"experts": 1}},
        "more experts: QPS +4 % by parallelism",
    ),
    Variant(
        "Wukong candidates",
        "the paper's experts in the candidate stream",
        {"candidate": {"hidden": None, "wukong": {"experts": 1, "fm_rank": 4, "hidden": 64}}},
    ),
    Variant(
        "full-size candidates",
        "a candidate stream four times as wide",
        {"candidate": {"hidden": 256, "head_hidden": 128}},
    ),
)
