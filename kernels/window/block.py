"""Block-diagonal self-attention on padded rows: a token sees the tokens of its own block of `block`, and no others.

The successor of the sliding window in Meta's GEM (64-token blocks): no key is read twice and no score is computed to be
masked away. `block_attention_dense` is the specification.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MASKED = -3.0e4  # finite in f16 as well; exp() of it is exactly 0 in every dtype


def block_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, block: int) -> Tensor:
    """Softmax attention inside blocks, scaled by 1/√d_h; blocks begin at position 0.

    q, k, v [B, H, T, d_h]; lengths int [B] (tokens beyond are padding). Returns [B, H, T, d_h]; rows of padding queries are
    finite but meaningless.
    """
    steps = q.shape[2]
    tail = (-steps) % block
    count = (steps + tail) // block
    queries, keys, values = (F.pad(x, (0, 0, 0, tail)).unflatten(2, (count, block)) for x in (q, k, v))  # [B, H, n, b, d_h]
    position = torch.arange(steps + tail, device=q.device).unflatten(0, (count, block))  # [n, b]
    present = position[None] < lengths[:, None, None]  # [B, n, b]
    scores = (queries * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)  # [B, H, n, b, b]
    weights = scores.masked_fill(~present[:, None, :, None, :], _MASKED).softmax(-1)
    return (weights @ values).flatten(2, 3)[:, :, :steps]


def block_attention_dense(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, block: int) -> Tensor:
    """The same with a dense T × T mask; arguments as in `block_attention`."""
    steps = torch.arange(q.shape[2], device=q.device)
    same = torch.div(steps[:, None], block, rounding_mode="floor") == torch.div(steps[None, :], block, rounding_mode="floor")
    allowed = same & (steps[None, None, :] < lengths[:, None, None])  # [B, T, T]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.masked_fill(~allowed[:, None], _MASKED).softmax(-1) @ v
