"""Seed pooling over jagged rows: B = 1152, H = 4, d_h = 128, 32 and 256 seeds."""

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
from kernels.dispatch import seed_pooling
from kernels.seed_pooling.reference import seed_pooling_jagged


class SeedPoolingBenchmark(Benchmark):
    """leaves: seeds [n_seeds, H, d_h], k, v [sum_T, H, d_h]."""

    name = "seed_pooling"
    what = "seed pooling (softmax), bf16"

    def cases(self) -> list[Case]:
        if self.tiny:
            return [Case("T 24, 19 seeds", {"B": 3, "T": 24, "H": 2, "d_h": 16, "seeds": 19, "sparsity": 0.5})]
        grid = {"B": 1152, "H": 4, "d_h": 128, "sparsity": 0.5}
        return [
            Case(f"T {t}, {n} seeds, sparsity 0.5", grid | {"T": t, "seeds": n}, p, p == 0)
            for t, n, p in ((1024, 32, 0), (1024, 256, 1), (2048, 32, 2))
        ]

    def batch(self, case: Case, seed: int) -> Batch:
        size = case.sizes
        lengths = uniform_lengths(size["B"], size["T"], size["sparsity"], seed)
        generator = torch.Generator(self.device).manual_seed(seed)

        def rows(*count: int) -> Tensor:
            shape = (*count, size["H"], size["d_h"])
            return torch.randn(shape, generator=generator, device=self.device, dtype=torch.bfloat16)

        leaves = (rows(size["seeds"]), rows(sum(lengths)), rows(sum(lengths)))
        layout = {"lengths": lengths, "offsets": offsets_of(lengths, self.device)}
        return Batch(case, tuple(x.requires_grad_() for x in leaves), rows(size["B"], size["seeds"]), layout)

    def flops(self, batch: Batch) -> tuple[float, float]:
        size = batch.case.sizes
        forward = 4.0 * size["H"] * size["d_h"] * size["seeds"] * sum(batch.layout["lengths"])
        return forward, 2.5 * forward

    def moved_bytes(self, batch: Batch) -> tuple[float, float]:
        seeds, rows, pooled = batch.leaves[0].nbytes, batch.leaves[1].nbytes, batch.d_out.nbytes
        return seeds + 2.0 * rows + pooled, 2.0 * seeds + 4.0 * rows + 2.0 * pooled

    def exact(self, batch: Batch, samples: int) -> list[tuple[Tensor, slice] | None]:
        lengths = batch.layout["lengths"][:samples]
        rows = slice(sum(lengths))
        seeds, k, v = batch.leaves
        leaves = [x.detach().double().requires_grad_() for x in (seeds, k[rows], v[rows])]
        seeds, k, v = leaves
        out, _ = seed_pooling_jagged(seeds, k, v, offsets_of(lengths, self.device))
        _, dk, dv = torch.autograd.grad(out, leaves, batch.d_out[:samples].double())
        return [(out.detach(), slice(samples)), None, (dk, rows), (dv, rows)]  # the seeds' gradient is the whole batch's

    @variant("triton")
    def triton(self, batch: Batch) -> Prepared:
        """The operator as callers use it."""
        offsets = batch.layout["offsets"]
        seeds, k, v = batch.leaves
        return of_autograd(lambda: seed_pooling(seeds, k, v, offsets, backend="triton"), batch.leaves, batch.d_out, (same,) * 4)

    @variant("eager (padded)", baseline=True)
    def eager(self, batch: Batch) -> Prepared:
        """Plain PyTorch: rows padded to the longest sample, scores in device memory."""
        return self._padded(batch, _dense)

    @variant("torch.compile (padded)", compiled=True)
    def compiled(self, batch: Batch) -> Prepared:
        """The same, fused by the compiler."""
        return self._padded(batch, self._compiled)

    @cached_property
    def _compiled(self) -> Any:
        return torch.compile(_dense, dynamic=False)

    @variant("SDPA (length mask, padded)")
    def sdpa(self, batch: Batch) -> Prepared:
        """`scaled_dot_product_attention` with the lengths as a mask."""

        def attend(seeds: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
            q = seeds.transpose(0, 1).expand(k.shape[0], -1, -1, -1)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=real).transpose(1, 2)

        return self._padded(batch, attend)

    def _padded(self, batch: Batch, operator) -> Prepared:  # type: ignore[no-untyped-def]
        padding = Padding(batch.layout["lengths"], batch.case.sizes["T"], self.device)
        lengths = torch.tensor(batch.layout["lengths"], device=self.device)
        real = (torch.arange(padding.shape[1], device=self.device) < lengths[:, None])[:, None, None, :]
        seeds = batch.leaves[0].detach().requires_grad_()
        with torch.no_grad():
            k, v = (padding.pad(x).transpose(1, 2).contiguous() for x in batch.leaves[1:])
        leaves = (seeds, k.requires_grad_(), v.requires_grad_())

        def unpad(x: Tensor) -> Tensor:
            return padding.unpad(x.transpose(1, 2))

        return of_autograd(lambda: operator(*leaves, real), leaves, batch.d_out, (same, same, unpad, unpad))


def _dense(seeds: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """seeds [n, H, d_h], k and v [B, H, T, d_h], real [B, 1, 1, T] → [B, n, H, d_h]."""
    scores = (seeds.transpose(0, 1) * seeds.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores.masked_fill(~real, float("-inf")).softmax(-1) @ v).transpose(1, 2)
