"""Sliding-window self-attention of the sequence side: S + SWA(LN(S)) with QK-norm and ROTE (model_spec §3.3, OC-4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kernels.gdpa.reference import rms_norm
from kernels.window.padded import window_attention, window_attention_dense
from model.layers.rote import RotaryTemporal
from model.layers.tokens import length_mask


class SlidingWindowAttention(nn.Module):
    """Pre-norm residual block over S [B, T, d_e]; padding rows stay zero.

    `cap` is the longest history: when the window covers it, the dense form does the same work with
    fewer operators.
    """

    def __init__(self, width: int, heads: int, window: int, cap: int, time_scale_s: float) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.rote = RotaryTemporal(width // heads, time_scale_s)
        self.attend = window_attention_dense if cap <= window + 1 else window_attention

    def forward(self, s: Tensor, age_s: Tensor, lengths: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(F.layer_norm(s, s.shape[-1:])).chunk(3, -1)
        )
        cos, sin = self.rote.angles(age_s)
        q, k = self.rote.rotate(rms_norm(q), cos, sin), self.rote.rotate(rms_norm(k), cos, sin)
        mixed = self.attend(q, k, v, lengths, self.window)  # [B, H, T, d_h]
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return s + mixed * length_mask(lengths, s.shape[1]).unsqueeze(-1)
