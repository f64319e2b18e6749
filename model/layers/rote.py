"""ROTE: rotary temporal embedding of queries and keys (model_spec §3.4, OC-5).

The d_h/2 rotary pairs are split: the first half turns with the token's position p at
θ_j = 10000^(−j/m), the second half with τ = log1p(age / t_scale) at wavelengths from 0.1 to 20 units
of τ. `age` is relative to the newest event of the histories, so a cached user state never expires.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RotaryTemporal(nn.Module):
    """Rotates x [B, H, T, d_h] by position and age [B, T] (seconds)."""

    def __init__(self, head_width: int, time_scale_s: float) -> None:
        super().__init__()
        pairs = head_width // 4
        exponent = torch.arange(pairs, dtype=torch.float64) / pairs
        wavelength = 0.1 * (20 / 0.1) ** (torch.arange(pairs, dtype=torch.float64) / max(pairs - 1, 1))
        self.theta: Tensor
        self.phi: Tensor
        self.register_buffer("theta", (10_000.0**-exponent).float(), persistent=False)
        self.register_buffer("phi", (2 * math.pi / wavelength).float(), persistent=False)
        self.time_scale_s = time_scale_s

    def angles(self, age_s: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every pair's angle, [B, 1, T, d_h/2]."""
        steps = torch.arange(age_s.shape[1], device=age_s.device, dtype=age_s.dtype)
        position = (steps[:, None] * self.theta).expand(age_s.shape[0], -1, -1)
        tau = torch.log1p(age_s / self.time_scale_s)
        angle = torch.cat([position, tau[..., None] * self.phi], dim=-1).unsqueeze(1)
        return angle.cos(), angle.sin()

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the pairs (x_j, x_{j + d_h/2})."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
