"""Global Interaction: a mixture of Wukong experts (model_spec §4.3, OC-9, OC-10, OC-11).

Each expert sees its share of the set tokens plus all summary tokens H and emits as many tokens as it
was dealt, so the token count is constant over layers. Tokens are dealt with stride M, which spreads
one expert's output over all experts of the next layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WukongExpert(nn.Module):
    """{factorization machine ‖ linear compression} + residual → LayerNorm. [B, n_in, d] → [B, n_out, d]."""

    def __init__(self, tokens_in: int, tokens_out: int, width: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.fm_tokens = (tokens_out + 1) // 2
        self.y = nn.Parameter(torch.randn(tokens_in, rank) / math.sqrt(tokens_in))
        self.up = nn.Linear(tokens_in * rank, hidden)
        self.down = nn.Linear(hidden, self.fm_tokens * width)
        self.compress = nn.Parameter(torch.randn(tokens_out - self.fm_tokens, tokens_in) / math.sqrt(tokens_in))
        self.residual = nn.Parameter(torch.randn(tokens_out, tokens_in) / math.sqrt(tokens_in))

    def forward(self, x: Tensor) -> Tensor:
        fm = self.factorize(x).flatten(1)
        fmb = self.down(F.silu(self.up(F.layer_norm(fm, fm.shape[-1:])))).unflatten(-1, (self.fm_tokens, -1))
        mixed = torch.cat([fmb, self.compress @ x], dim=1) + self.residual @ x
        return F.layer_norm(mixed, mixed.shape[-1:])

    def factorize(self, x: Tensor) -> Tensor:
        """FM(X) = X (Xᵀ Y): pairwise products compressed to rank k, without the n × n matrix. [B, n, k]"""
        return x @ (x.transpose(1, 2) @ self.y)


class WukongMixture(nn.Module):
    """[X ‖ H] → X of the next layer; X [B, n, d], H [B, m, d]."""

    def __init__(self, tokens: int, summary_tokens: int, width: int, experts: int, rank: int, hidden: int) -> None:
        super().__init__()
        share = tokens // experts
        self.experts = nn.ModuleList(WukongExpert(share + summary_tokens, share, width, rank, hidden) for _ in range(experts))

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        dealt = x.unflatten(1, (-1, len(self.experts)))  # [B, n/M, M, d]: stride M
        outputs = [expert(torch.cat([dealt[:, :, m], summary], dim=1)) for m, expert in enumerate(self.experts)]
        return torch.cat(outputs, dim=1)
