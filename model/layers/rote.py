"""ROTE: rotary temporal embedding of queries and keys (model_spec §3.4, OC-5).

A pair (x_j, x_{j + d_h/2}) turns with the token's position p at θ_j = 10000^(−j/m), with τ = log1p(Δt / t_scale) at
wavelengths from 0.1 to 20 units of τ, or with both; `TimeEncoding` says which. Δt is relative to the newest event of the
histories, or to the event before (`adjacent`), so a cached user state never expires.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.kunlun.options import TimeEncoding
from model.layers.jagged import JaggedHistory

_SPLIT = frozenset({TimeEncoding.AGE, TimeEncoding.ADJACENT})


class RotaryTemporal(nn.Module):
    """Rotates q and k [B, H, T, d_h] by position and age [B, T] (seconds)."""

    def __init__(self, head_width: int, time_scale_s: float, encoding: TimeEncoding = TimeEncoding.AGE) -> None:
        super().__init__()
        pairs = head_width // 4 if encoding in _SPLIT else head_width // 2
        exponent = torch.arange(pairs, dtype=torch.float64) / pairs
        wavelength = 0.1 * (20 / 0.1) ** (torch.arange(pairs, dtype=torch.float64) / max(pairs - 1, 1))
        self.theta: Tensor
        self.phi: Tensor
        self.register_buffer("theta", (10_000.0**-exponent).float(), persistent=False)
        self.register_buffer("phi", (2 * math.pi / wavelength).float(), persistent=False)
        self.time_scale_s, self.encoding = time_scale_s, encoding

    def forward(self, q: Tensor, k: Tensor, age_s: Tensor) -> tuple[Tensor, Tensor]:
        if self.encoding is TimeEncoding.NONE:
            return q, k
        cos, sin = self.angles(age_s)
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin)

    def jagged(self, q: Tensor, k: Tensor, history: JaggedHistory) -> tuple[Tensor, Tensor]:
        """The same on jagged rows q, k [N, H, d_h]."""
        if self.encoding is TimeEncoding.NONE:
            return q, k
        elapsed = history.age_s
        if self.encoding is TimeEncoding.ADJACENT:
            elapsed = torch.where(history.position == 0, 0.0, gap_before(elapsed[None])[0])
        angle = self._angle(history.position.to(elapsed.dtype)[:, None] * self.theta, elapsed).unsqueeze(1)  # [N, 1, d_h/2]
        cos, sin = angle.cos(), angle.sin()
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin)

    def angles(self, age_s: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every pair's angle, [B, 1, T, d_h/2]."""
        steps = torch.arange(age_s.shape[1], device=age_s.device, dtype=age_s.dtype)
        position = (steps[:, None] * self.theta).expand(age_s.shape[0], -1, -1)
        angle = self._angle(position, gap_before(age_s) if self.encoding is TimeEncoding.ADJACENT else age_s).unsqueeze(1)
        return angle.cos(), angle.sin()

    def _angle(self, position: Tensor, elapsed: Tensor) -> Tensor:
        """Angles by position [..., pairs] and by elapsed seconds [...], as the encoding has them: [..., d_h/2]."""
        if self.encoding is TimeEncoding.POSITION:
            return position
        tau = torch.log1p(elapsed / self.time_scale_s)
        turned = tau[..., None] * self.phi
        return position + turned if self.encoding is TimeEncoding.SUM else torch.cat([position, turned], dim=-1)

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the pairs (x_j, x_{j + d_h/2})."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def gap_before(age_s: Tensor) -> Tensor:
    """Seconds since the event before, from ages [B, T] (oldest first); 0 for the first."""
    return (F.pad(age_s, (1, 0))[:, :-1] - age_s).clamp(min=0)
