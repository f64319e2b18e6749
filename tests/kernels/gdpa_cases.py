"""Operands and layouts that every form of GDPA is tested on."""

from __future__ import annotations

from dataclasses import replace

import torch
from ragged import DEVICE, LENGTHS, offsets_of, rows
from torch import Tensor

from kernels.gdpa.params import Jagged, padded_layout

KEYS = [5, 16, 0, 1, 33]  # lengths of jagged K/V blocks: no keys for a sample with queries among them
USERS = [2, 0, 2, 1, 2]  # samples that share blocks

# The layout, K/V rows, and whether the PFFN block takes it.
LAYOUTS = {
    "dense": (lambda: Jagged(offsets_of(LENGTHS), 21), True),
    "several tiles": (lambda: Jagged(offsets_of(LENGTHS), 40), True),
    "candidates of users": (lambda: Jagged(offsets_of(LENGTHS), 18, integers(USERS)), True),
    "padded rows": (lambda: padded(24, [24, 0, 17, 1, 8], 20), True),
    "uniform rows": (lambda: padded(19, None, 12), True),
    "jagged blocks": (lambda: Jagged(offsets_of(LENGTHS), k_offsets=offsets_of(KEYS)), True),
    "self-attention": (lambda: Jagged(offsets_of(LENGTHS), k_offsets=offsets_of(LENGTHS)), True),
    "window": (lambda: Jagged(offsets_of(LENGTHS), k_offsets=offsets_of(LENGTHS), window=5), False),
    "window of one": (lambda: Jagged(offsets_of([5, 40, 0]), 37, window=0), False),
    "shared queries": (lambda: Jagged(offsets_of([19]), k_offsets=offsets_of(KEYS), shared_q=True), False),
    "shared queries, dense": (lambda: Jagged(offsets_of([7]), 9, integers(USERS), shared_q=True), False),
}
BLOCK_LAYOUTS = [name for name, (_, block) in LAYOUTS.items() if block]


def integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def padded(steps: int, lengths: list[int] | None, n_kv: int) -> Jagged:
    samples = len(lengths or [0, 0, 0])
    q, k = (torch.empty(samples, rows_, 1, 1, device=DEVICE) for rows_ in (steps, n_kv))
    return padded_layout(q, k, None if lengths is None else integers(lengths))


def layout(name: str) -> Jagged:
    return replace(LAYOUTS[name][0]())


def operands(
    jagged: Jagged, dtype: torch.dtype, heads: int = 2, width: int = 24, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q, k, v, dout) that fit a layout; padding rows of q and dout are zero."""
    if jagged.k_offsets is not None:
        k_rows = int(jagged.k_offsets[-1])
    else:
        samples = 3 if jagged.kv_index is not None else len(jagged.q_offsets) - 1
        k_rows = samples * (jagged.n_kv or 0)
    q_rows = int(jagged.q_offsets[-1])
    out_rows = q_rows * (jagged.samples(k_rows) if jagged.shared_q else 1)
    counts = (q_rows, k_rows, k_rows, out_rows)
    q, k, v, dout = (rows(count, heads, width, dtype=dtype, seed=seed + i) for i, count in enumerate(counts))
    if jagged.q_lengths is not None:
        for start, end, length in zip(jagged.q_offsets[:-1], jagged.q_offsets[1:], jagged.q_lengths, strict=True):
            q[start + length : end] = 0
            dout[start + length : end] = 0
    return q, k, v, dout
