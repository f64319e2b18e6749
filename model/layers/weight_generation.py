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


class GdpaWeights(nn.Module):
    """Static scales of a preset, and the gain that goes with `paper+gain`; K and V come from a subclass."""

    def __init__(self, head_width: int, heads: int, n_kv: int, cap: int, scale: str, activation: tuple[str, ...]) -> None:
        super().__init__()
        self.heads = heads
        self.gain: nn.Parameter | None = None
        self.gain_scale = cap / math.sqrt(head_width)
        if scale == "kernel":
            self.params = GDPAParams(activation, 1.0, 1.0 / n_kv)
        else:
            self.params = GDPAParams(activation, 1.0 / cap, 1.0)  # τ: the configured cap, never the batch's maximum (OC-3)
        if scale == "paper+gain":
            self.gain = nn.Parameter(torch.ones(heads))  # relative to gain_scale, so that optimizer steps matter

    def scaled(self, k: Tensor) -> Tensor:
        """K [B, n_kv, H, d_h], normed per head, times the gain."""
        k = rms_norm(k)
        return k if self.gain is None else k * (self.gain * self.gain_scale).unsqueeze(-1)


class GeneratedWeights(GdpaWeights):
    """X_sum [B, n_kv, d] → K, V [B, n_kv, H, d_h] of one tower."""

    def __init__(
        self, width: int, tower_width: int, heads: int, n_kv: int, cap: int, scale: str, activation: tuple[str, ...]
    ) -> None:
        super().__init__(tower_width // heads, heads, n_kv, cap, scale, activation)
        self.to_k = nn.Linear(width, tower_width, bias=False)
        self.to_v = nn.Linear(width, tower_width, bias=False)
        if self.gain is not None:
            with torch.no_grad():
                self.to_v.weight.mul_(1.0 / math.sqrt(n_kv))

    def forward(self, x_sum: Tensor) -> tuple[Tensor, Tensor]:
        k = self.scaled(self.to_k(x_sum).unflatten(-1, (self.heads, -1)))
        return k, self.to_v(x_sum).unflatten(-1, (self.heads, -1))


class LearnedWeights(GdpaWeights):
    """K, V [B, n_kv, H, d_h] that are parameters, the same for every sample: GDPA becomes a plain two-layer network."""

    def __init__(self, tower_width: int, heads: int, n_kv: int, cap: int, scale: str, activation: tuple[str, ...]) -> None:
        super().__init__(tower_width // heads, heads, n_kv, cap, scale, activation)
        self.k = nn.Parameter(torch.randn(n_kv, heads, tower_width // heads))
        self.v = nn.Parameter(torch.randn(n_kv, heads, tower_width // heads) / math.sqrt(3 * n_kv))

    def forward(self, samples: int) -> tuple[Tensor, Tensor]:
        k, v = self.scaled(self.k), self.v
        return k.expand(samples, -1, -1, -1), v.expand(samples, -1, -1, -1)


class GeneratedLinear(nn.Module):
    """InterFormer's PFFN: S [B, T, d_e] → S · W, W = KᵀV / √d_e generated per sample; no activation, no residual."""

    def __init__(self, width: int, tower_width: int, n_kv: int) -> None:
        super().__init__()
        self.to_k = nn.Linear(width, tower_width, bias=False)
        self.to_v = nn.Linear(width, tower_width, bias=False)
        with torch.no_grad():
            self.to_v.weight.mul_(1.0 / math.sqrt(n_kv))

    def forward(self, s: Tensor, x_sum: Tensor) -> Tensor:
        w = rms_norm(self.to_k(x_sum)).transpose(1, 2) @ self.to_v(x_sum)  # [B, d_e, d_e]
        return s @ (w * s.shape[-1] ** -0.5)
