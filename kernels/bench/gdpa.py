"""GDPA at Meta's published grid: B = 1152, H = 4, d_h = 128, fast_gelu (ads_model_kernel_library, `gdpa/`).

Set 1: keys are as many as queries, sparsity 1 and 0.5. Set 2: 256 dense keys per sample (the PFFN use).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

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
from kernels.dispatch import GDPAParams, Jagged, gdpa
from kernels.gdpa.padded import gdpa_padded
from kernels.gdpa.reference import gdpa_jagged

Operator = Callable[..., Tensor]
PARAMS = GDPAParams(("fast_gelu",), scale_in=128**-0.5, scale_out=1.0)


class GDPABenchmark(Benchmark):
    """leaves: q [sum_T, H, d_h], k and v [rows, H, d_h]."""

    name = "gdpa"
    what = "GDPA, fast_gelu, bf16"
    operator: ClassVar[Operator] = staticmethod(gdpa)
    padded: ClassVar[Operator] = staticmethod(gdpa_padded)
    plain: ClassVar[Operator] = staticmethod(gdpa_jagged)

    def cases(self) -> list[Case]:
        if self.tiny:
            return [
                Case("KV 16", {"B": 3, "T": 24, "H": 2, "d_h": 16, "n_kv": 16, "sparsity": 1.0}),
                Case("self, sparsity 0.5", {"B": 3, "T": 20, "H": 2, "d_h": 16, "n_kv": None, "sparsity": 0.5}),
            ]
        grid = {"B": 1152, "H": 4, "d_h": 128}
        fixed = [
            Case(f"Q {t}, KV 256", grid | {"T": t, "n_kv": 256, "sparsity": 1.0}, 0, t == 1024) for t in (1024, 256, 512, 2048)
        ]
        own = [
            Case(f"Q = KV = {t}, sparsity {s}", grid | {"T": t, "n_kv": None, "sparsity": s}, 1 + (s < 1), False)
            for t in (512, 1024, 256, 2048)
            for s in (1.0, 0.5)
        ]
        return fixed + own

    def batch(self, case: Case, seed: int) -> Batch:
        size = case.sizes
        lengths = uniform_lengths(size["B"], size["T"], size["sparsity"], seed)
        generator = torch.Generator(self.device).manual_seed(seed)

        def rows(count: int) -> Tensor:
            made = torch.randn(count, size["H"], size["d_h"], generator=generator, device=self.device, dtype=torch.bfloat16)
            return made.requires_grad_()

        key_rows = sum(lengths) if size["n_kv"] is None else size["B"] * size["n_kv"]
        leaves = rows(sum(lengths)), rows(key_rows), rows(key_rows)
        offsets = offsets_of(lengths, self.device)
        layout = {
            "lengths": lengths,
            "offsets": offsets,
            "jagged": _jagged(offsets, size["n_kv"], size["T"] if size["sparsity"] == 1.0 else 0),
        }
        return Batch(case, leaves, rows(sum(lengths)).detach(), layout)

    def flops(self, batch: Batch) -> tuple[float, float]:
        size, lengths = batch.case.sizes, batch.layout["lengths"]
        pairs = sum(t * (size["n_kv"] or t) for t in lengths)
        forward = 4.0 * size["H"] * size["d_h"] * pairs
        return forward, 2.5 * forward

    def moved_bytes(self, batch: Batch) -> tuple[float, float]:
        q, k, v = (x.nbytes for x in batch.leaves)
        return q + k + v + q, (q + k + v) + q + (q + k + v)

    def exact(self, batch: Batch, samples: int) -> list[tuple[Tensor, slice] | None]:
        size, lengths = batch.case.sizes, batch.layout["lengths"][:samples]
        q_rows = sum(lengths)
        k_rows = q_rows if size["n_kv"] is None else samples * size["n_kv"]
        leaves = [x[:n].detach().double().requires_grad_() for x, n in zip(batch.leaves, (q_rows, k_rows, k_rows), strict=True)]
        jagged = _jagged(offsets_of(lengths, self.device), size["n_kv"])
        out = self.plain(*leaves, PARAMS, jagged)
        gradients = torch.autograd.grad(out, leaves, batch.d_out[:q_rows].double())
        rows = (q_rows, q_rows, k_rows, k_rows)
        return [(x.detach(), slice(n)) for x, n in zip((out, *gradients), rows, strict=True)]

    @variant("triton")
    def triton(self, batch: Batch) -> Prepared:
        """The operator as callers use it."""
        return of_autograd(
            lambda: self.operator(*batch.leaves, PARAMS, batch.layout["jagged"], backend="triton"),
            batch.leaves,
            batch.d_out,
            (same,) * 4,
        )

    @variant("eager (padded)", baseline=True)
    def eager(self, batch: Batch) -> Prepared:
        """What plain PyTorch does: rows padded to the longest sample, scores in device memory."""
        return self._padded(batch, self._dense)

    @variant("torch.compile (padded)", compiled=True)
    def compiled(self, batch: Batch) -> Prepared:
        """The same, fused by the compiler."""
        return self._padded(batch, self._compiled)

    @cached_property
    def _compiled(self) -> Any:
        return torch.compile(self._dense, dynamic=False)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.padded(q, k, v, PARAMS)

    @variant("SDPA (softmax, padded)", comparable=True)
    def sdpa(self, batch: Batch) -> Prepared:
        """PyTorch's fused softmax attention: another function of the same shapes and products."""

        def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return self._padded(batch, softmax)

    def _padded(self, batch: Batch, operator) -> Prepared:  # type: ignore[no-untyped-def]
        size = batch.case.sizes
        padding = Padding(batch.layout["lengths"], batch.case.sizes["T"], self.device)
        dense = size["n_kv"] is not None
        with torch.no_grad():
            q, k, v = (x.unflatten(0, (size["B"], -1)) if dense and i else padding.pad(x) for i, x in enumerate(batch.leaves))
            d_out = padding.pad(batch.d_out)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        keys = _flat if dense else padding.unpad
        return of_autograd(lambda: operator(*leaves), leaves, d_out, (padding.unpad, padding.unpad, keys, keys))


def _jagged(offsets: Tensor, n_kv: int | None, uniform_rows: int = 0) -> Jagged:
    keys = {"n_kv": n_kv} if n_kv is not None else {"k_offsets": offsets}
    return Jagged(offsets, uniform_rows=uniform_rows, **keys)


def _flat(rows: Tensor) -> Tensor:
    return rows.flatten(0, 1)
