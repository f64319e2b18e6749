"""The `exact` wiring against `user_split`: A17, and what it shares per user (A16)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.architectures.kunlun.exact_graphs import ExactScore
from model.architectures.registry import load_preset
from model.ranker import KunlunRanker
from model.schema import Schema
from tests.model.architectures.test_ablations import drawn, scored
from tests.model.conftest import TABLE_ROWS


@pytest.fixture
def exact(schema: Schema) -> KunlunRanker:
    torch.manual_seed(0)
    return KunlunRanker(schema, load_preset("tiny_exact"), TABLE_ROWS).eval()


def run(model: KunlunRanker, candidates: dict[str, Tensor], users: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """S per event type of every candidate after `layers` layers."""
    states = dict(zip((s.name for s in model.encode_user.signature.outputs), model.encode_user(*users.values()), strict=True))
    score = model.score_candidates
    assert isinstance(score, ExactScore)
    return score.run(candidates | states, layers)[1]


@torch.no_grad()
def test_a17_another_candidate_changes_the_sequence_from_layer_0_on(exact: KunlunRanker) -> None:
    users, candidates = drawn(exact)
    candidates["request_index"] = torch.tensor([0, 0, 1, 1, 2, 2, 0])
    moved = candidates | {"item_rows": candidates["item_rows"].clone()}
    moved["item_rows"][4] += 1.0  # user 2: 5 clicks, no impression
    before, after = run(exact, candidates, users, 0), run(exact, moved, users, 0)
    for event, s in before.items():
        assert torch.equal(s, after[event]), "history tokens are the user's"
    before, after = run(exact, candidates, users, 1), run(exact, moved, users, 1)
    changed = (before["click"] - after["click"]).abs().amax((1, 2)) > 1e-4
    assert changed.nonzero().flatten().tolist() == [4], "generated weights do not know the candidate, or know another's"
    assert torch.count_nonzero(before["impression"][4:6]) == 0, "an empty history stays empty"
    same_user = run(exact, candidates, users, 1)["click"]
    assert (same_user[0] - same_user[1]).abs().max() > 1e-4, "candidates of one user have sequences of their own"


@torch.no_grad()
def test_a16_what_is_shared_per_user_knows_no_candidate_and_a_score_needs_only_its_own(exact: KunlunRanker) -> None:
    names = {spec.name for spec in exact.encode_user.signature.inputs}
    assert not any(name.startswith(("item_", "context_")) or "request" in name for name in names)
    users, candidates = drawn(exact)
    base = scored(exact, users, candidates)
    moved = candidates | {"item_rows": candidates["item_rows"].clone()}
    moved["item_rows"][3] += 1.0
    changed = (scored(exact, users, moved) - base).abs().amax(-1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [3]


@torch.no_grad()
def test_the_shared_layer_norm_is_what_the_block_would_make(exact: KunlunRanker) -> None:
    users, candidates = drawn(exact)
    states = dict(zip((s.name for s in exact.encode_user.signature.outputs), exact.encode_user(*users.values()), strict=True))
    for event in ("click", "impression"):
        tokens = states[f"tokens_{event}"]
        torch.testing.assert_close(states[f"normed_{event}"], torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]))
    without = states | {name: torch.zeros_like(t) for name, t in states.items() if name.startswith("normed_")}
    shared, other = (
        exact.score_candidates.raw_logits(*((candidates | given)[s.name] for s in exact.score_candidates.signature.inputs))
        for given in (states, without)
    )
    assert (shared - other).abs().max() > 1e-4, "layer 0 does not read the shared q̂"
