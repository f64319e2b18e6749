"""Each baseline against the formula of its paper, written out directly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.architectures.dcn_v2.config import DCNv2Config
from model.architectures.dcn_v2.graphs import CrossNetwork
from model.architectures.din.graphs import ActivationUnit, HistoryKeys
from model.architectures.hstu.config import HSTUConfig
from model.architectures.hstu.graphs import EncodeUser, Projections, ScoreCandidates
from model.architectures.interformer.graphs import SequenceLayer
from model.architectures.joined import Dice, Recent
from model.architectures.logistic_regression.graphs import Effects
from model.features import FeatureLayout
from model.schema import Schema

INDEX = torch.tensor([1, 0, 1, 1])


@torch.no_grad()
def test_dins_unit_is_a_network_over_key_query_difference_and_product() -> None:
    torch.manual_seed(0)
    keys_of, unit = HistoryKeys(5, 8, 6), ActivationUnit(8, 6)
    mask = torch.ones(2, 7, 1)
    mask[0, :3] = 0
    keys, hidden = keys_of(Recent(torch.randn(2, 7, 5), torch.zeros(2, 7), mask))
    queries = torch.randn(4, 8)
    a, b, p = keys_of.hidden.weight, unit.query.weight, unit.product.weight
    w3 = torch.randn(6, 8)
    whole = torch.cat([a - w3, b + w3, w3, p], dim=1)  # any split of A and B over k, q and k − q
    for c, r in enumerate(INDEX.tolist()):
        interest = torch.zeros(8)
        for k in keys[r][mask[r, :, 0] > 0]:
            q = queries[c]
            weight = unit.weight(unit.activation(whole @ torch.cat([k, q, k - q, k * q]) + keys_of.hidden.bias))
            interest += weight * k
        torch.testing.assert_close(unit(keys, hidden, queries, INDEX)[c], interest)


@torch.no_grad()
def test_dice_follows_the_statistics_of_training_afterwards() -> None:
    torch.manual_seed(0)
    dice, s = Dice(3), torch.randn(50, 3) * 2 + 1
    dice.alpha.fill_(0.3)
    dice.normalise.momentum = 1.0
    p = ((s - s.mean(0)) / (s.var(0, unbiased=False) + 1e-8).sqrt()).sigmoid()
    torch.testing.assert_close(dice.train()(s), p * s + (1 - p) * 0.3 * s)
    alone = dice.eval()(s[:1])
    torch.testing.assert_close(alone, dice(s)[:1])


@pytest.mark.parametrize("rank", [None, 3])
@torch.no_grad()
def test_cross_layers_follow_their_equation(rank: int | None) -> None:
    torch.manual_seed(0)
    crosses = CrossNetwork(4, 5, DCNv2Config(cross_layers=3, rank=rank))
    r, c = torch.randn(2, 4), torch.randn(4, 5)
    x0 = torch.cat([r[INDEX], c], dim=1)
    first = torch.cat([crosses.first.from_request.weight, crosses.first.from_candidate.weight], dim=1)
    matrices = [first, *(layer.weight for layer in crosses.later)]
    biases = [crosses.first.from_request.bias, *(layer.bias for layer in crosses.later)]
    x = x0
    for number, (w, b) in enumerate(zip(matrices, biases, strict=True)):
        inner = x @ w.T + (0 if b is None else b)
        x = x0 * (inner if crosses.lift is None else crosses.lift[number](inner)) + x
    torch.testing.assert_close(crosses(r, c, INDEX), x)


@torch.no_grad()
def test_logistic_regression_adds_one_weight_per_id_and_number(schema: Schema) -> None:
    torch.manual_seed(0)
    group, tasks = FeatureLayout(schema).item, len(schema.tasks)
    effects, rows = Effects(group, tasks), torch.randn(3, group.embedded_width + len(group.dense))
    assert effects.weight is not None
    effects.weight.copy_(torch.randn_like(effects.weight))
    columns = torch.tensor([sum(s.width for s in group.slots[:n]) for n in range(len(group.slots))])
    for task in range(tasks):
        expected = rows[:, columns + task].sum(1) + rows[:, group.embedded_width :] @ effects.weight[task]
        torch.testing.assert_close(effects(rows)[:, task], expected)


def _hstu_layer(layer: Projections, x: Tensor, bias: Tensor, seen: Tensor, heads: int, n: int) -> Tensor:
    """Eq. 1–3 of the paper over one sequence x [T, d], with b [T, T] and who sees whom [T, T]."""
    u, v, q, k = F.silu(layer.uvqk(F.layer_norm(x, x.shape[-1:], eps=1e-6))).chunk(4, dim=-1)
    out = []
    for h in range(heads):
        part = slice(h * x.shape[-1] // heads, (h + 1) * x.shape[-1] // heads)
        scores = F.silu(q[:, part] @ k[:, part].T * q[:, part].shape[-1] ** -0.5 + bias) * seen / n
        out.append(scores @ v[:, part])
    attended = torch.cat(out, dim=-1)
    return x + layer.out(F.layer_norm(attended, attended.shape[-1:], eps=1e-6) * u)


@torch.no_grad()
def test_hstu_is_causal_attention_over_all_event_types_in_order_of_time_with_the_candidate_last(schema: Schema) -> None:
    """The candidate's side has weights of its own; given the history's, both graphs together are one HSTU over T + 1 tokens."""
    torch.manual_seed(0)
    config = HSTUConfig(width=8, heads=2, layers=2)
    encode, score = EncodeUser(schema, config).eval(), ScoreCandidates(schema, config).eval()
    for number, layer in enumerate(score.layers):
        source = encode.layers[0] if number == 0 else layer.projections
        layer.projections.load_state_dict(source.state_dict())
        layer.own_bias.copy_(encode.time_bias[number](torch.zeros(())))
    encode.last.weight.copy_(score.layers[1].projections.uvqk.weight.unflatten(0, (4, 8))[[1, 3]].flatten(0, 1))
    encode.last.bias.copy_(score.layers[1].projections.uvqk.bias.unflatten(0, (4, 8))[[1, 3]].flatten())

    given = {
        s.name: torch.randn([{"U": 1, "T_click": 3, "T_impression": 4}.get(str(n), n) for n in s.shape])
        for s in encode.signature.inputs
    }
    given |= {"click_age": torch.tensor([[900.0, 40.0, 7.0]]), "impression_age": torch.tensor([[1000.0, 70.0, 40.0, 0.0]])}
    given |= {"click_length": torch.tensor([3]), "impression_length": torch.tensor([4])}
    states = dict(zip((s.name for s in encode.signature.outputs), encode.encode(given), strict=True))
    side = {s.name: torch.randn([{"R": 1, "C": 1}.get(str(n), n) for n in s.shape]) for s in score.signature.inputs}
    side |= states | {"request_index": torch.tensor([0])}

    def beside(event: str) -> Tensor:
        return torch.cat([given[f"{event}_rows"], given[f"{event}_dense"]], dim=-1)[0]

    user = encode.user(torch.cat([given["user_rows"], given["user_dense"]], dim=-1))
    clicks, shown = encode.events["event_click"](beside("click")), encode.events["event_impression"](beside("impression"))
    candidate = score.item(torch.cat([side["item_rows"], side["item_dense"]], dim=-1))
    candidate = candidate + score.context(torch.cat([side["context_rows"], side["context_dense"]], dim=-1))
    merged = torch.cat([user, shown[0:1], clicks[0:1], shown[1:2], clicks[1:2], shown[2:3], clicks[2:3], shown[3:4], candidate])
    age = torch.tensor([2.0**25, 1000.0, 900.0, 70.0, 40.0, 40.0, 7.0, 0.0, 0.0])
    apart = (age[None, :] - age[:, None]).clamp(min=0)
    x = merged
    for number, layer in enumerate(score.layers):
        x = _hstu_layer(layer.projections, x, encode.time_bias[number](apart), torch.ones(9, 9).tril(), 2, encode.normaliser)
    expected = score.logits(F.silu(score.head(F.layer_norm(x[-1], (8,), eps=1e-6))))
    torch.testing.assert_close(score.score(side)[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_interformers_sequences_turn_by_relative_position_and_ignore_padding() -> None:
    torch.manual_seed(0)
    layer = SequenceLayer(8, 2, 2)
    x_sum, s = torch.randn(1, 2, 8), torch.randn(1, 6, 8)
    whole = layer(s, x_sum, torch.ones(1, 6))
    padded = torch.cat([s[:, :2], torch.randn(1, 3, 8), s[:, 2:]], dim=1)
    found = layer(padded, x_sum, torch.tensor([[1.0, 1, 0, 0, 0, 1, 1, 1, 1]]))
    torch.testing.assert_close(found[:, [0, 1, 5, 6, 7, 8]], whole)
    swapped = layer(s[:, [0, 1, 3, 2, 4, 5]], x_sum, torch.ones(1, 6))
    assert not torch.allclose(swapped[:, 5], whole[:, 5])  # order matters
