"""Global Interaction: a mixture of Wukong experts (model_spec §4.3, OC-9, OC-10, OC-11).

Each expert sees its share of the set tokens (`expert_input: full`: all of them) plus all summary tokens H and emits as
many tokens as are its share, so the token count is constant over layers. Tokens are dealt with stride M, which spreads one
expert's output over all experts of the next layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.kunlun.options import ExpertInput, WukongConfig


class WukongExpert(nn.Module):
    """{factorization machine ‖ linear compression} + residual → LayerNorm. [B, n_in, d] → [B, n_out, d].

    `attentive`: Y of the FM depends on the sample, made from linearly compressed tokens (Wukong, §3.4). Half of the tokens,
    rounded up, come from the FM, so an expert of a single token compresses nothing.
    """

    def __init__(self, tokens_in: int, tokens_out: int, width: int, rank: int, hidden: int, *, attentive: bool = False) -> None:
        super().__init__()
        self.fm_tokens = (tokens_out + 1) // 2
        self.y = nn.Parameter(torch.randn(tokens_in, rank) / math.sqrt(tokens_in))
        self.up = nn.Linear(tokens_in * rank, hidden)
        self.down = nn.Linear(hidden, self.fm_tokens * width)
        compressed = torch.randn(tokens_out - self.fm_tokens, tokens_in) / math.sqrt(tokens_in)
        self.compress = nn.Parameter(compressed) if len(compressed) else None
        self.residual = nn.Parameter(torch.randn(tokens_out, tokens_in) / math.sqrt(tokens_in))
        self.attend = AttentiveProjection(tokens_in, width, rank, hidden) if attentive else None

    def forward(self, x: Tensor) -> Tensor:
        fm = self.factorize(x).flatten(1)
        fmb = self.down(F.silu(self.up(F.layer_norm(fm, fm.shape[-1:])))).unflatten(-1, (self.fm_tokens, -1))
        tokens = fmb if self.compress is None else torch.cat([fmb, self.compress @ x], dim=1)
        mixed = tokens + self.residual @ x
        return F.layer_norm(mixed, mixed.shape[-1:])

    def factorize(self, x: Tensor) -> Tensor:
        """FM(X) = X (Xᵀ Y): pairwise products compressed to rank k, without the n × n matrix. [B, n, k]"""
        y = self.y if self.attend is None else self.y + self.attend(x)
        return x @ (x.transpose(1, 2) @ y)


class AttentiveProjection(nn.Module):
    """X [B, n, d] → what the sample adds to Y, [B, n, k]: a two-layer network over k compressed tokens."""

    def __init__(self, tokens: int, width: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.rank = rank
        self.compress = nn.Parameter(torch.randn(rank, tokens) / math.sqrt(tokens))
        self.up = nn.Linear(rank * width, hidden)
        self.down = nn.Linear(hidden, tokens * rank)

    def forward(self, x: Tensor) -> Tensor:
        compressed = F.layer_norm(self.compress @ x, x.shape[-1:]).flatten(1)
        return (self.down(F.silu(self.up(compressed))) / math.sqrt(x.shape[1])).unflatten(-1, (-1, self.rank))


class WukongMixture(nn.Module):
    """[X ‖ H] → X of the next layer; X [B, n, d], H [B, m, d]."""

    def __init__(self, tokens: int, summary_tokens: int, width: int, mix: WukongConfig) -> None:
        super().__init__()
        self.sees_all = mix.expert_input is ExpertInput.FULL
        inputs = mix.inputs(tokens, summary_tokens)
        self.experts = nn.ModuleList(
            WukongExpert(inputs, tokens // mix.experts, width, mix.fm_rank, mix.hidden, attentive=mix.attentive)
            for _ in range(mix.experts)
        )

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        dealt = x.unflatten(1, (-1, len(self.experts)))  # [B, n/M, M, d]: stride M
        outputs = [
            expert(torch.cat([x if self.sees_all else dealt[:, :, m], summary], dim=1)) for m, expert in enumerate(self.experts)
        ]
        return torch.cat(outputs, dim=1)
