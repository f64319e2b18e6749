"""Sliding-window attention over jagged rows: B = 1152, H = 4, d_h = 128, half windows of 50 and 100, and full attention."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.bench.benchmark import (
    Batch,
    Benchmark,
    Case,
    Padding,
    Prepared,
    of_autograd,
    offsets_of,
    same,
    uniform_lengths,
    variant,
)
from kernels.dispatch import window_attention
from kernels.window.padded import window_attention as blocked
from kernels.window.reference import window_attention_jagged


class WindowBenchmark(Benchmark):
    """leaves: q, k, v [sum_T, H, d_h]."""

    name = "window_attention"
    what = "sliding-window attention (softmax), bf16"

    def cases(self) -> list[Case]:
        if self.tiny:
            return [Case("T 24, w 5", {"B": 3, "T": 24, "H": 2, "d_h": 16, "window": 5, "sparsity": 0.5})]
        grid = {"B": 1152, "H": 4, "d_h": 128}
        return [
            Case(f"T {t}, w {w}, sparsity {s}", grid | {"T": t, "window": w, "sparsity": s}, p, p == 0)
            for t, w, s, p in (
                (1024, 100, 0.5, 0),
                (1024, 50, 0.5, 1),
                (1024, 1023, 1.0, 1),
                (2048, 100, 0.5, 2),
                (512, 50, 1.0, 2),
            )
        ]

    def batch(self, case: Case, seed: int) -> Batch:
        size = case.sizes
        lengths = uniform_lengths(size["B"], size["T"], size["sparsity"], seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (sum(lengths), size["H"], size["d_h"])
        q, k, v, d_out = (torch.randn(shape, generator=generator, device=self.device, dtype=torch.bfloat16) for _ in range(4))
        layout = {"lengths": lengths, "offsets": offsets_of(lengths, self.device)}
        return Batch(case, tuple(x.requires_grad_() for x in (q, k, v)), d_out, layout)

    def flops(self, batch: Batch) -> tuple[float, float]:
        size = batch.case.sizes
        pairs = sum(_pairs(t, size["window"]) for t in batch.layout["lengths"])
        forward = 4.0 * size["H"] * size["d_h"] * pairs
        return forward, 2.5 * forward

    def moved_bytes(self, batch: Batch) -> tuple[float, float]:
        rows = batch.leaves[0].nbytes
        return 4.0 * rows, 8.0 * rows

    def exact(self, batch: Batch, samples: int) -> list[tuple[Tensor, slice] | None]:
        lengths = batch.layout["lengths"][:samples]
        rows = slice(sum(lengths))
        leaves = [x[rows].detach().double().requires_grad_() for x in batch.leaves]
        q, k, v = leaves
        out, _ = window_attention_jagged(q, k, v, offsets_of(lengths, self.device), batch.case.sizes["window"])
        gradients = torch.autograd.grad(out, leaves, batch.d_out[rows].double())
        return [(x.detach(), rows) for x in (out, *gradients)]

    @variant("triton")
    def triton(self, batch: Batch) -> Prepared:
        """The operator as callers use it."""
        offsets, window = batch.layout["offsets"], batch.case.sizes["window"]
        q, k, v = batch.leaves
        return of_autograd(
            lambda: window_attention(q, k, v, offsets, window, backend="triton"), batch.leaves, batch.d_out, (same,) * 4
        )

    @variant("eager (blocked, padded)", baseline=True)
    def eager(self, batch: Batch) -> Prepared:
        """Plain PyTorch in O(T · w) memory: the form of the exported graph."""
        return self._padded(batch, blocked)

    @variant("torch.compile (blocked, padded)", compiled=True)
    def compiled(self, batch: Batch) -> Prepared:
        """The same, fused by the compiler."""
        return self._padded(batch, self._compiled)

    @cached_property
    def _compiled(self) -> Any:
        return torch.compile(blocked, dynamic=False)

    @variant("SDPA (dense mask, padded)")
    def sdpa(self, batch: Batch) -> Prepared:
        """`scaled_dot_product_attention` with the band as a mask (none where the window covers whole rows of one length).

        The mask is made beforehand, as a model would make it once for all its layers.
        """
        size, lengths = batch.case.sizes, torch.tensor(batch.layout["lengths"], device=self.device)
        steps = torch.arange(size["T"], device=self.device)
        near = (steps[:, None] - steps[None, :]).abs() <= size["window"]
        whole = size["window"] >= size["T"] - 1 and size["sparsity"] == 1.0
        mask = None if whole else near & (steps < lengths[:, None])[:, None, None, :]

        def attend(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        return self._padded(batch, attend)

    def _padded(self, batch: Batch, operator) -> Prepared:  # type: ignore[no-untyped-def]
        padding = Padding(batch.layout["lengths"], batch.case.sizes["T"], self.device)
        lengths = torch.tensor(batch.layout["lengths"], device=self.device)
        with torch.no_grad():
            q, k, v, d_out = (padding.pad(x).transpose(1, 2).contiguous() for x in (*batch.leaves, batch.d_out))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        real = (torch.arange(padding.shape[1], device=self.device) < lengths[:, None])[:, None, :, None]
        d_out = d_out * real
        return of_autograd(
            lambda: operator(*leaves, lengths, batch.case.sizes["window"]),
            leaves, d_out, (lambda x: padding.unpad(x.transpose(1, 2)),) * 4,
        )  # fmt: skip


def _pairs(steps: int, window: int) -> int:
    return steps * steps if steps <= window else steps * (2 * window + 1) - window * (window + 1)
