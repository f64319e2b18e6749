"""Target pooling: candidates attend to the last S of every tower (user_split.md; the matching of DIN, arXiv:1706.06978).

Keys and values are part of the user state, made once per user; queries are seeds made from the candidate:

    K = RMSNorm(LN(S) W_K + τ u),  V = S W_V                       per user and event type, τ = log1p(age / t_scale)
    Q = g_s RMSNorm(x_c W_Q)                                       n seeds per candidate and event type
    x ← x + W_O · [ w(Q Kᵀ / √d + bias) V ]                        w: softmax, or sigmoid / √cap (not normalised, as in DIN)

The bias is 0 for events and very negative beyond a history's end, so an empty history adds exactly nothing. Candidates of
several requests meet K and V without a copy per candidate: where graphs are served, every candidate is multiplied with
the keys of *every* request of the batch, one large product for each, and its own is picked afterwards. That costs R times the
FLOPs, but with the few requests of a batch it is several times faster on a CPU than small products over gathered
keys (1 request: 3 times, 4 requests: 1.5 times; even at 6), and a candidate's bits do not depend on its batch mates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.gdpa.reference import rms_norm
from model.layers.jagged import JaggedHistory
from model.layers.served_form import is_served_form, padded_to_cap
from model.layers.tokens import length_mask

_ABSENT = -3.0e4  # finite in f16 as well; exp() and sigmoid() of it are exactly 0 in every dtype


class TargetMemory(NamedTuple):
    """What candidates attend to: keys and values [R, T, d], bias [R, T]."""

    keys: Tensor
    values: Tensor
    bias: Tensor


class TargetKeys(nn.Module):
    """Last S [U, T, d_e] of one tower → its `TargetMemory`."""

    def __init__(self, tower_width: int, width: int, cap: int, time_scale_s: float) -> None:
        super().__init__()
        self.cap, self.time_scale_s = cap, time_scale_s
        self.to_k = nn.Linear(tower_width, width, bias=False)
        self.to_v = nn.Linear(tower_width, width, bias=False)
        self.recency = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor, age_s: Tensor, lengths: Tensor) -> TargetMemory:
        keys = self._keys(s, age_s)
        steps = self.cap if is_served_form() else s.shape[1]
        bias = (1.0 - length_mask(lengths, steps)) * _ABSENT
        return TargetMemory(padded_to_cap(keys, self.cap), padded_to_cap(self.to_v(s), self.cap), bias)

    def jagged(self, s: Tensor, history: JaggedHistory) -> TargetMemory:
        """Last S as jagged rows [N, d_e] → the same memory, padded to the cap."""
        bias = (1.0 - length_mask(history.lengths, self.cap)) * _ABSENT
        return TargetMemory(history.padded(self._keys(s, history.age_s)), history.padded(self.to_v(s)), bias)

    def _keys(self, s: Tensor, age_s: Tensor) -> Tensor:
        """Keys of rows S [..., d_e] with ages [...]."""
        tau = torch.log1p(age_s / self.time_scale_s).unsqueeze(-1)
        return rms_norm(self.to_k(F.layer_norm(s, s.shape[-1:])) + tau * self.recency)


class TargetPooling(nn.Module):
    """Candidates x [C, n] and one `TargetMemory` per event type → x with what they have found, [C, n]."""

    def __init__(self, inputs: int, width: int, seeds: int, caps: list[int], normalized: bool) -> None:
        super().__init__()
        self.seeds, self.width, self.caps, self.normalized = seeds, width, caps, normalized
        self.to_q = nn.Linear(inputs, len(caps) * seeds * width, bias=False)
        self.gain = nn.Parameter(torch.ones(len(caps), seeds))
        self.shift = None if normalized else nn.Parameter(torch.zeros(len(caps), seeds))
        self.out = nn.Linear(len(caps) * seeds * width, inputs, bias=False)

    def forward(self, x: Tensor, memories: list[TargetMemory], request_index: Tensor) -> Tensor:
        queries = self.to_q(F.layer_norm(x, x.shape[-1:])).unflatten(-1, (len(self.caps), self.seeds, self.width))
        queries = rms_norm(queries) * (self.gain * self.width**-0.5).unsqueeze(-1)  # [C, E, s, d]
        attend = self._among_all if is_served_form() else self._gathered
        found = [attend(queries[:, e], memory, request_index, e) for e, memory in enumerate(memories)]
        return x + self.out(torch.cat(found, dim=-1))

    def _among_all(self, q: Tensor, memory: TargetMemory, request_index: Tensor, event: int) -> Tensor:
        """q [C, s, d] against every request's keys, then each candidate's own: [C, s · d]."""
        requests, rows = memory.keys.shape[0], q.flatten(0, 1).unsqueeze(0)  # [1, C · s, d]
        scores = (rows @ memory.keys.transpose(1, 2)).unflatten(1, (-1, self.seeds))  # [R, C, s, T]
        weights = self._weights(scores + memory.bias[:, None, None, :], event).flatten(1, 2)
        pooled = (weights @ memory.values).unflatten(1, (-1, self.seeds)).flatten(2)  # [R, C, s · d]
        own = torch.arange(q.shape[0], device=q.device) * requests + request_index
        return pooled.transpose(0, 1).flatten(0, 1).index_select(0, own)

    def _gathered(self, q: Tensor, memory: TargetMemory, request_index: Tensor, event: int) -> Tensor:
        """The same with each candidate's keys and values gathered, for batches of many requests."""
        keys, values, bias = (part.index_select(0, request_index) for part in memory)
        scores = q @ keys.transpose(1, 2) + bias[:, None, :]  # [C, s, T]
        return (self._weights(scores, event) @ values).flatten(1)

    def _weights(self, scores: Tensor, event: int) -> Tensor:
        """Scores [..., s, T] → weights; absent events get exactly 0, unless all are absent (whose values are 0)."""
        if self.shift is None:
            return scores.softmax(-1)
        return torch.sigmoid(scores + self.shift[event].unsqueeze(-1)) / math.sqrt(self.caps[event])
