"""Sliding-window self-attention on padded rows in O(T · w) memory, bidirectional: |i − j| ≤ w.

Queries are cut into blocks of w tokens; a block sees its own keys and those of its two neighbours,
3w keys, of which the band and the length mask keep the right ones. No T × T tensor exists. The
dense masked twin `window_attention_dense` is the specification.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MASKED = -3.0e4  # finite in f16 as well; exp() of it is exactly 0 in every dtype


def window_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, window: int) -> Tensor:
    """Softmax attention inside a symmetric window, scaled by 1/√d_h.

    q, k, v [B, H, T, d_h]; lengths int [B] (tokens beyond are padding); window ≥ 1. Returns
    [B, H, T, d_h]; rows of padding queries are finite but meaningless.
    """
    steps, block = q.shape[2], window
    tail = (-steps) % block
    blocks = (steps + tail) // block
    queries = F.pad(q, (0, 0, 0, tail)).unflatten(2, (blocks, block))  # [B, H, n, w, d_h]
    keys, values = (_neighbours(x, tail, blocks, block) for x in (k, v))  # [B, H, n, 3w, d_h]
    scores = (queries * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)  # [B, H, n, w, 3w]
    scores = scores.masked_fill(~_band(lengths, blocks, block)[:, None], _MASKED)
    return (scores.softmax(-1) @ values).flatten(2, 3)[:, :, :steps]


def window_attention_dense(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, window: int) -> Tensor:
    """The same with a dense T × T mask: the specification, and the better form when T ≤ window + 1."""
    steps = torch.arange(q.shape[2], device=q.device)
    near = (steps[:, None] - steps[None, :]).abs() <= window
    allowed = near & (steps[None, None, :] < lengths[:, None, None])  # [B, T, T]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.masked_fill(~allowed[:, None], _MASKED).softmax(-1) @ v


def _neighbours(x: Tensor, tail: int, blocks: int, block: int) -> Tensor:
    """Each block with the one before and the one after it; zeros beyond the ends."""
    padded = F.pad(x, (0, 0, block, tail + block)).unflatten(2, (blocks + 2, block))
    return torch.cat([padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]], dim=3)


def _band(lengths: Tensor, blocks: int, block: int) -> Tensor:
    """Which of its 3w keys a query may see: inside the band, at or after 0, before the sample's length. [B, n, w, 3w]"""
    start = torch.arange(blocks, device=lengths.device)[:, None, None] * block
    query = torch.arange(block, device=lengths.device)[None, :, None]
    key = torch.arange(3 * block, device=lengths.device)[None, None, :] - block
    near = (query - key).abs() <= block
    position = start + key  # [n, 1, 3w]
    return (near & (position >= 0))[None] & (position[None] < lengths[:, None, None, None])
