"""Self-attention of the sequence side with QK-norm and ROTE: S + MHA(LN(S)), or LN(S + MHA(S)) (model_spec §3.3, OC-4)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from kernels.dispatch import window_attention as jagged_window_attention
from kernels.gdpa.reference import rms_norm
from kernels.window.block import block_attention
from kernels.window.padded import window_attention, window_attention_dense
from model.architectures.kunlun.options import Attention, NormPlacement, TowerConfig
from model.architectures.kunlun.stack import StackConfig
from model.layers.jagged import JaggedHistory
from model.layers.rote import RotaryTemporal
from model.layers.tokens import length_mask

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


class SelfAttention(nn.Module):
    """Residual block over S [B, T, d_e]; padding rows stay zero. `cap`: the longest history."""

    def __init__(self, config: StackConfig, tower: TowerConfig, cap: int) -> None:
        super().__init__()
        self.heads, self.is_post_norm = tower.heads, config.attention_norm is NormPlacement.POST
        self.qkv = nn.Linear(tower.width, 3 * tower.width, bias=False)
        self.out = nn.Linear(tower.width, tower.width, bias=False)
        self.rote = RotaryTemporal(tower.width // tower.heads, config.time_scale_s, config.time_encoding)
        self.attend, self.window = attention_form(tower, cap)
        self.in_blocks = self.attend is block_attention

    def forward(self, s: Tensor, age_s: Tensor, lengths: Tensor) -> Tensor:
        x = s if self.is_post_norm else F.layer_norm(s, s.shape[-1:])
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = self.rote(rms_norm(q), rms_norm(k), age_s)
        mixed = self.attend(q, k, v, lengths, self.window)  # [B, H, T, d_h]
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        s = s + mixed * length_mask(lengths, s.shape[1]).unsqueeze(-1)
        return F.layer_norm(s, s.shape[-1:]) if self.is_post_norm else s

    def jagged(self, s: Tensor, history: JaggedHistory) -> Tensor:
        """The same on jagged rows s [N, d_e]."""
        x = s if self.is_post_norm else F.layer_norm(s, s.shape[-1:])
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, -1))  # [N, H, d_h]
        q, k = self.rote.jagged(rms_norm(q), rms_norm(k), history)
        offsets, longest = (history.blocks(self.window), self.window) if self.in_blocks else (history.offsets, history.cap)
        mixed = jagged_window_attention(q, k, v, offsets, self.window, max_length=longest)
        s = s + self.out(mixed.flatten(1))
        return F.layer_norm(s, s.shape[-1:]) if self.is_post_norm else s


def attention_form(tower: TowerConfig, cap: int) -> tuple[Attend, int]:
    """The form that runs a tower's attention, and its window: the dense one, of fewer operators, where it does no more work."""
    match tower.attention:
        case Attention.BLOCK if cap > tower.window:
            return block_attention, tower.window
        case Attention.WINDOW if cap > tower.window + 1:
            return window_attention, tower.window
        case _:
            return window_attention_dense, cap
