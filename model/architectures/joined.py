"""Layers over [request ‖ candidate] features that multiply the request's part once per request.

What every baseline shares. A candidate's row is gathered from its request's after the product, so that a batch of
requests costs R products of the user side and C of the item side instead of C of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.graphs import Given, beside, features
from model.layers.dropout import HiddenDropout
from model.signature import REQUEST_INDEX


class JoinedLinear(nn.Module):
    """W [r ‖ c] + b for request rows r [R, m] and candidate rows c [C, n] → [C, outputs]."""

    def __init__(self, request_width: int, candidate_width: int, outputs: int) -> None:
        super().__init__()
        whole = nn.Linear(request_width + candidate_width, outputs)  # the initialisation of one layer over both
        self.from_request = nn.Linear(request_width, outputs)
        self.from_candidate = nn.Linear(candidate_width, outputs, bias=False)
        with torch.no_grad():
            self.from_request.weight.copy_(whole.weight[:, :request_width])
            self.from_request.bias.copy_(whole.bias)
            self.from_candidate.weight.copy_(whole.weight[:, request_width:])

    def forward(self, r: Tensor, c: Tensor, request_index: Tensor) -> Tensor:
        return self.from_candidate(c) + self.from_request(r).index_select(0, request_index)


class PReLU(nn.Module):
    """max(s, 0) + α · min(s, 0) with one α per unit of the last axis (torch's own takes its units from axis 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, s: Tensor) -> Tensor:
        return s.clamp(min=0) + self.alpha * s.clamp(max=0)


class Dice(nn.Module):
    """Dice of DIN (arXiv:1706.06978, eq. 4): f(s) = p·s + (1 − p)·α·s, p = σ((s − E[s]) / √(Var[s] + ε)), per unit.

    Mean and variance are the batch's in training and running averages afterwards, so a served score knows no batch mates.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(width, affine=False, eps=1e-8)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor) -> Tensor:
        p = self.normalise(s).sigmoid()
        return p * s + (1 - p) * self.alpha * s


class JoinedNetwork(nn.Module):
    """A multi-layer perceptron over [r ‖ c] → logits [C, tasks]. `activation`: prelu, dice, or relu."""

    def __init__(
        self, request_width: int, candidate_width: int, hidden: Sequence[int], tasks: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.first = JoinedLinear(request_width, candidate_width, hidden[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
        self.activations = nn.ModuleList(_activation(activation, width) for width in hidden)
        self.dropout = HiddenDropout()
        self.logits = nn.Linear(hidden[-1], tasks)

    def forward(self, r: Tensor, c: Tensor, request_index: Tensor) -> Tensor:
        x = self.dropout(self.activations[0](self.first(r, c, request_index)))
        for layer, activation in zip(self.layers, list(self.activations)[1:], strict=True):
            x = self.dropout(activation(layer(x)))
        return self.logits(x)


class CandidateTokens(nn.Module):
    """Item features and their request's context → tokens [C, tokens, width], layer-normed."""

    def __init__(self, context_width: int, item_width: int, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        self.item = nn.Linear(item_width, tokens * width)
        self.context = nn.Linear(context_width, tokens * width, bias=False) if context_width else None

    def forward(self, given: Given) -> Tensor:
        x, context = self.item(features(given, "item")), beside(given, "context")
        if self.context is not None and context is not None:
            x = x + self.context(context).index_select(0, given[REQUEST_INDEX])
        return F.layer_norm(x.unflatten(-1, (self.tokens, self.width)), (self.width,))


def request_rows(given: Given, state: Tensor) -> Tensor:
    """[user state ‖ context] per request, [R, ·]; a schema may declare no context."""
    context = beside(given, "context")
    return state if context is None else torch.cat([state, context], dim=-1)


@dataclass(frozen=True)
class Recent:
    """One event type's newest events, right-aligned: features [U, N, inputs], age_s [U, N], mask [U, N, 1] (1.0: real)."""

    features: Tensor
    age_s: Tensor
    mask: Tensor


def recent(given: Given, event: str, count: int, training: bool, at_least: int = 1) -> Recent:
    """The newest `count` events of every user, the newest last, padded at the front; features of the padding are zero.

    A state has a fixed size. In training nothing keeps it, so there it is no longer than the batch's longest history, or
    than `at_least`.
    """
    inputs, age, lengths = features(given, event), given[f"{event}_age"], given[f"{event}_length"]
    if training:
        count = min(count, max(inputs.shape[1], at_least))
    steps = lengths[:, None] - count + torch.arange(count, device=lengths.device)  # [U, N]; negative: padding
    mask = (steps >= 0).to(inputs.dtype)
    at = steps.clamp(min=0)
    taken = torch.gather(inputs, 1, at.unsqueeze(-1).expand(-1, -1, inputs.shape[-1]))
    return Recent(taken * mask.unsqueeze(-1), torch.gather(age, 1, at) * mask, mask.unsqueeze(-1))


def _activation(name: str, width: int) -> nn.Module:
    if name == "dice":
        return Dice(width)
    return PReLU(width) if name == "prelu" else nn.ReLU()
