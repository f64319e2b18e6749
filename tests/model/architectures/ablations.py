"""One row per choice that a configuration can make: what differs from `tiny` (`user_split`), or from `tiny_exact`."""

from __future__ import annotations

from typing import Any

SMALL_TOWER = {"width": 16, "heads": 2, "n_seeds": 8, "n_tokens": 2, "kronecker_rank": 2, "window": 2, "layers": 1}
FULL_SIZE = {"tokens": 4, "width": 32, "head_hidden": 32, "hidden": None, "wukong": {"experts": 2, "fm_rank": 4, "hidden": 32}}

ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "pffn_ffn": {"pffn": "ffn"},
    "pffn_generated_linear": {"pffn": "generated_linear"},
    "scale_paper": {"scale": "paper"},
    "scale_kernel": {"scale": "kernel"},
    "activation_per_head": {"activation": ["silu", "gelu"]},
    "pooling_pma": {"default_tower": {"pooling": "pma"}},
    "pooling_gdpa": {"default_tower": {"pooling": "gdpa"}},
    "attention_dense": {"default_tower": {"attention": "dense"}},
    "attention_block": {"default_tower": {"attention": "block"}},
    "window_wide": {"default_tower": {"window": 11}},
    "no_comp_skip": {"comp_skip": False},
    "towers": {"towers": {"impression": SMALL_TOWER}},
    "share_towers": {"share_towers": True},
    "experts_1": {"user_interaction": {"experts": 1}},
    "experts_4": {"user_tokens": 8, "user_interaction": {"experts": 4}},
    "experts_of_one_token": {"user_interaction": {"experts": 4}},
    "expert_input_full": {"user_interaction": {"expert_input": "full"}},
    "attentive_fm": {"user_interaction": {"attentive": True}},
    "time_none": {"time_encoding": "none"},
    "time_position": {"time_encoding": "position"},
    "time_adjacent": {"time_encoding": "adjacent"},
    "time_sum": {"time_encoding": "sum"},
    "norm_post": {"attention_norm": "post"},
    "n_recent": {"default_tower": {"n_recent": 3}},
    "masknet": {"event_tokens": "masknet"},
    "place_embedding": {"place_embedding": True},
}
"""Choices of the stack, which both wirings have."""

USER_SPLIT: dict[str, dict[str, Any]] = {
    "candidate_wukong": {"candidate": {"hidden": None, "wukong": {"experts": 2, "fm_rank": 4, "hidden": 16}}},
    "full_size_candidate_stream": {"candidate": FULL_SIZE, "state_tokens": 12},
    "target_pooling": {"target_pooling": {"seeds": 2, "width": 8}},
    "target_pooling_sigmoid": {"target_pooling": {"seeds": 2, "width": 8, "weights": "sigmoid"}},
    "target_pooling_even_layers": {"layers": 2, "default_tower": {"layers": 2}, "target_pooling": {"seeds": 1, "width": 8}},
    "target_pooling_no_comp_skip": {"comp_skip": False, "target_pooling": {"seeds": 1, "width": 8}},
}
"""Choices of the candidate stream."""

EXACT = ("default", "pffn_ffn", "no_comp_skip", "towers", "share_towers", "attention_block", "n_recent", "place_embedding")
"""Rows that meet what is special in `exact`: the shared q̂, histories padded to the caps, the towers."""

MODELS: dict[str, dict[str, Any]] = {f"user_split-{row}": {"preset": "tiny"} | c for row, c in (ROWS | USER_SPLIT).items()} | {
    f"exact-{row}": {"preset": "tiny_exact"} | ROWS[row] for row in EXACT
}
