"""HSP: hierarchical seed pooling, sequence → summary tokens (model_spec §4.2, OC-6, OC-7).

    H_seed = MHA(LN(E), LN(S), S)      n_seeds learned queries, shared by all samples
    H      = LN(SumKron(H_seed))       n_seeds → n_tok tokens

No bias anywhere, so an empty history gives exactly 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.activations import activate
from kernels.dispatch import GDPAParams, Jagged, gdpa, seed_pooling
from model.layers.jagged import JaggedHistory
from model.layers.tokens import length_mask

_MASKED = -3.0e4


class SumKronLinear(nn.Module):
    """Y = Σ_i Z_iᵀ X W_i: a rank-k Kronecker sum over tokens and channels. [B, n_in, d] → [B, n_out, d].

    Z first: it shrinks the token axis before the d × d products.
    """

    def __init__(self, tokens_in: int, tokens_out: int, width: int, rank: int) -> None:
        super().__init__()
        self.rank, self.tokens_out = rank, tokens_out
        self.z = nn.Parameter(torch.randn(rank, tokens_in, tokens_out) / math.sqrt(tokens_in))
        self.w = nn.Parameter(torch.randn(rank, width, width) / math.sqrt(rank * width))

    def forward(self, x: Tensor) -> Tensor:
        mixer = self.z.permute(2, 0, 1).flatten(0, 1)  # [n_out · k, n_in]
        mixed = (mixer @ x).unflatten(1, (self.tokens_out, self.rank)).flatten(2)  # [B, n_out, k · d]
        return mixed @ self.w.flatten(0, 1)


class AttentionPooling(nn.Module):
    """Pooling by multi-head attention (PMA, Set Transformer): S [B, T, d_e] with lengths [B] → H [B, n_seeds, d_e].

    `activation`: of GDPA, one or one per head, in place of the softmax.
    """

    def __init__(self, width: int, heads: int, n_seeds: int, activation: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.seeds = nn.Parameter(torch.randn(n_seeds, width))
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, s: Tensor, lengths: Tensor) -> Tensor:
        summary = self.attend(s, lengths)
        return F.layer_norm(summary, summary.shape[-1:])

    def attend(self, s: Tensor, lengths: Tensor) -> Tensor:
        """What the seeds have found, [B, n_seeds, d_e]; exactly 0 for an empty history."""
        q = self._heads(self.to_q(F.layer_norm(self.seeds, self.seeds.shape[-1:])).unsqueeze(0))  # [1, H, n_seeds, d_h]
        k = self._heads(self.to_k(F.layer_norm(s, s.shape[-1:])))
        v = self._heads(self.to_v(s))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, n_seeds, T]
        if self.activation is None:
            present = length_mask(lengths, s.shape[1])
            weights = scores.masked_fill(present[:, None, None, :] == 0, _MASKED).softmax(-1)
        else:
            weights = activate(scores, self.activation, head_dim=1)  # keys beyond a history are 0, and so is Act(0)
        return self.out((weights @ v).transpose(1, 2).flatten(2))  # empty history: v is zero, so is this

    def jagged(self, s: Tensor, history: JaggedHistory) -> Tensor:
        """The same on jagged rows s [N, d_e]: H [B, n_seeds, d_e]."""
        summary = self.attend_jagged(s, history)
        return F.layer_norm(summary, summary.shape[-1:])

    def attend_jagged(self, s: Tensor, history: JaggedHistory) -> Tensor:
        """`attend` on jagged rows s [N, d_e]."""
        seeds = self.to_q(F.layer_norm(self.seeds, self.seeds.shape[-1:])).unflatten(-1, (self.heads, -1))
        k = self.to_k(F.layer_norm(s, s.shape[-1:])).unflatten(-1, (self.heads, -1))
        v = self.to_v(s).unflatten(-1, (self.heads, -1))
        if self.activation is None:
            found = seed_pooling(seeds, k, v, history.offsets)  # [B, n_seeds, H, d_h]
        else:
            count, samples = seeds.shape[0], history.samples
            starts = torch.arange(samples + 1, device=s.device, dtype=torch.int32) * count
            rows = Jagged(starts, k_offsets=history.offsets, max_length=count)
            queries = seeds.expand(samples, -1, -1, -1).flatten(0, 1)
            found = gdpa(queries, k, v, GDPAParams(self.activation, seeds.shape[-1] ** -0.5), rows).unflatten(0, (-1, count))
        return self.out(found.flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class HierarchicalSeedPooling(AttentionPooling):
    """The same with more seeds than tokens, compressed: S [B, T, d_e] with lengths [B] → H [B, n_tok, d_e]."""

    def __init__(
        self,
        width: int,
        heads: int,
        n_seeds: int,
        n_tokens: int,
        rank: int,
        activation: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(width, heads, n_seeds, activation)
        self.compress = SumKronLinear(n_seeds, n_tokens, width, rank)

    def forward(self, s: Tensor, lengths: Tensor) -> Tensor:
        summary = self.compress(self.attend(s, lengths))
        return F.layer_norm(summary, summary.shape[-1:])

    def jagged(self, s: Tensor, history: JaggedHistory) -> Tensor:
        summary = self.compress(self.attend_jagged(s, history))
        return F.layer_norm(summary, summary.shape[-1:])
