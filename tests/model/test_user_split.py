"""The whole model in the user_split wiring: A6, A13, A16, and the configuration errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.architectures.kunlun.config import KunlunConfig
from model.architectures.registry import load_preset
from model.config import ConfigError, parse_yaml
from model.layers.kunlun_layer import Sequence
from model.ranker import KunlunRanker
from model.signature import GraphSignature

LENGTHS = {"click": [12, 0, 5], "impression": [24, 3, 0]}


def inputs(signature: GraphSignature, sizes: dict[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a graph; history lengths as above, padding rows filled with noise on purpose."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for spec in signature.inputs:
        shape = [sizes[s] if isinstance(s, str) else s for s in spec.shape]
        if spec.name.endswith("_length"):
            tensors[spec.name] = torch.tensor(LENGTHS[spec.name.removesuffix("_length")])
        elif spec.name == "request_index":
            tensors[spec.name] = torch.randint(0, sizes["R"], shape, generator=generator)
        elif spec.name.endswith("_age"):
            tensors[spec.name] = torch.rand(shape, generator=generator) * 1e6
        else:
            tensors[spec.name] = torch.randn(shape, generator=generator)
    return tensors


ENCODE_SIZES = {"U": 3, "T_click": 12, "T_impression": 24}
SCORE_SIZES = {"R": 3, "C": 11}


@torch.no_grad()
def test_a6_a_user_state_does_not_depend_on_batch_mates_or_padding(model: KunlunRanker) -> None:
    given = inputs(model.encode_user.signature, ENCODE_SIZES)
    together = model.encode_user(*given.values())
    for user in range(3):
        alone = {k: v[user : user + 1] for k, v in given.items()}
        for event in LENGTHS:  # as short as the history allows
            steps = max(1, LENGTHS[event][user])
            for part in ("rows", "dense", "age"):
                if f"{event}_{part}" in alone:
                    alone[f"{event}_{part}"] = alone[f"{event}_{part}"][:, :steps]
        for state, whole in zip(model.encode_user(*alone.values()), together, strict=True):
            torch.testing.assert_close(state[0], whole[user], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a6_a_score_does_not_depend_on_batch_mates_or_order(model: KunlunRanker) -> None:
    given = inputs(model.score_candidates.signature, SCORE_SIZES)
    logits, _ = model.score_candidates(*given.values())
    order = torch.randperm(11)
    shuffled = {k: v[order] if k.startswith("item_") or k == "request_index" else v for k, v in given.items()}
    torch.testing.assert_close(model.score_candidates(*shuffled.values())[0], logits[order], rtol=1e-5, atol=1e-5)
    for c in range(11):
        r = int(given["request_index"][c])
        alone = {k: v[c : c + 1] if k.startswith("item_") else v[r : r + 1] for k, v in given.items()}
        alone["request_index"] = torch.tensor([0])
        torch.testing.assert_close(model.score_candidates(*alone.values())[0][0], logits[c], rtol=1e-5, atol=1e-5)


def test_a13_every_parameter_gets_a_gradient_and_skipped_parts_do_not_exist(model: KunlunRanker) -> None:
    states = model.encode_user(*inputs(model.encode_user.signature, ENCODE_SIZES).values())
    given = inputs(model.score_candidates.signature, SCORE_SIZES)
    given |= {f"state_{i}": state for i, state in enumerate(states)}
    model.score_candidates.raw_logits(*given.values()).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if not n.startswith("tables.") and (p.grad is None or not p.grad.any())]
    assert dead == []
    names = [n for n, _ in model.named_parameters()]
    odd = [n for n in names if "stream.layers.1." in n and n.startswith("encode_user")]
    even = [n for n in names if "stream.layers.0." in n and n.startswith("encode_user")]
    assert not any("pool" in n or "weights" in n or "summary" in n for n in odd)
    assert not any("qkv" in n for n in even)


@torch.no_grad()
def test_a13_an_odd_layer_reuses_the_summary_by_identity(model: KunlunRanker) -> None:
    stream = model.encode_user.stream
    summary = {"click": torch.randn(1, 4, 32), "impression": torch.randn(1, 4, 32)}
    tokens = {e: torch.randn(1, 6, 32) for e in summary}
    sequences = {e: Sequence(torch.zeros(1, 6), torch.tensor([6])) for e in summary}
    _, _, h, _ = stream.layers[1](torch.randn(1, 4, 32), tokens, summary, sequences)
    assert all(h[e] is summary[e] for e in summary)


@torch.no_grad()
def test_a16_the_user_state_takes_no_candidate_context_or_request_time(model: KunlunRanker) -> None:
    names = {spec.name for spec in model.encode_user.signature.inputs}
    assert not any(n.startswith(("item_", "context_")) or "request" in n for n in names)
    score = inputs(model.score_candidates.signature, SCORE_SIZES)
    base, _ = model.score_candidates(*score.values())
    moved = dict(score)
    moved["item_rows"] = score["item_rows"].clone()
    moved["item_rows"][4] += 1.0
    other, _ = model.score_candidates(*moved.values())
    changed = (other - base).abs().amax(-1) > 0
    assert changed.nonzero().flatten().tolist() == [4]


@torch.no_grad()
def test_calibration_is_part_of_the_scores(model: KunlunRanker) -> None:
    from model.artifact import Calibration

    given = inputs(model.score_candidates.signature, SCORE_SIZES)
    raw = model.score_candidates.raw_logits(*given.values())
    model.score_candidates.calibrate([Calibration(scale=2.0, shift=0.5), Calibration(negative_rate=0.1)])
    logits, probabilities = model.score_candidates(*given.values())
    torch.testing.assert_close(logits[:, 0], raw[:, 0] * 2 + 0.5)
    odds = raw[:, 1].exp() * 0.1  # sampled negatives at 10 %: true odds are a tenth
    torch.testing.assert_close(probabilities[:, 1], odds / (1 + odds))


def test_dead_last_attention_is_rejected_with_the_reason() -> None:
    config = load_preset("tiny").model_dump()
    config["default_tower"]["layers"] = 2
    with pytest.raises(ValueError, match="its last self-attention would never be read; use 1 or 3"):
        KunlunConfig.model_validate(config)


def test_unknown_model_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="user_token: unknown key; did you mean 'user_tokens'"):
        parse_yaml(KunlunConfig, "width: 32\nuser_token: 4\n")
