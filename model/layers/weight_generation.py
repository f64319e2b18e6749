"""Weight Generation: set tokens → context summary X_sum → per-sample K and V of the PFFN (model_spec OC-1).

    U     = W_tok · X                    token mix n → n_kv
    X_sum = U + MLP(LN(U))               two layers, SiLU
    K     = RMSNorm_head(X_sum W_K) · g_h,   V = X_sum W_V

X_sum is shared by the towers of all event types; each tower owns its W_K, W_V (OC-13). The gain g_h
puts the pre-activation at unit variance at start for the `paper+gain` scale (OC-2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.dispatch import GDPAParams
from kernels.gdpa.reference import rms_norm


class ContextSummary(nn.Module):
    """X [B, n, d] → X_sum [B, n_kv, d]."""

    def __init__(self, tokens: int, n_kv: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(n_kv, tokens) / math.sqrt(tokens))
        self.up = nn.Linear(width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.mix @ x
        return u + self.down(F.silu(self.up(F.layer_norm(u, u.shape[-1:]))))


class GeneratedWeights(nn.Module):
    """X_sum [B, n_kv, d] → K, V [B, n_kv, H, d_h] of one tower, with the static scales of its preset."""

    def __init__(
        self, width: int, tower_width: int, heads: int, n_kv: int, cap: int, scale: str, activation: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.heads, head_width = heads, tower_width // heads
        self.to_k = nn.Linear(width, tower_width, bias=False)
        self.to_v = nn.Linear(width, tower_width, bias=False)
        self.gain: nn.Parameter | None = None
        self.gain_scale = cap / math.sqrt(head_width)
        if scale == "kernel":
            self.params = GDPAParams(activation, 1.0, 1.0 / n_kv)
        else:
            self.params = GDPAParams(activation, 1.0 / cap, 1.0)  # τ: the configured cap, never the batch's maximum (OC-3)
        if scale == "paper+gain":
            self.gain = nn.Parameter(torch.ones(heads))  # relative to gain_scale, so that optimizer steps matter
            with torch.no_grad():
                self.to_v.weight.mul_(1.0 / math.sqrt(n_kv))

    def forward(self, x_sum: Tensor) -> tuple[Tensor, Tensor]:
        k = rms_norm(self.to_k(x_sum).unflatten(-1, (self.heads, -1)))
        v = self.to_v(x_sum).unflatten(-1, (self.heads, -1))
        return (k if self.gain is None else k * (self.gain * self.gain_scale).unsqueeze(-1)), v
