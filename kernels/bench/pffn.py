"""The PFFN block (LayerNorm → GDPA → + q̂ → RMSNorm → + q) at Meta's block shape: B = 768, KV 128, sparsity 0.5, d_h = 128."""

from __future__ import annotations

from kernels.bench.benchmark import Batch, Case, Variant
from kernels.bench.gdpa import GDPABenchmark
from kernels.dispatch import pffn
from kernels.pffn.padded import pffn_padded
from kernels.pffn.reference import pffn_jagged


class PFFNBenchmark(GDPABenchmark):
    """Leaves as GDPA's."""

    name = "pffn"
    what = "PFFN block, fast_gelu, bf16"
    operator = staticmethod(pffn)
    padded = staticmethod(pffn_padded)
    plain = staticmethod(pffn_jagged)

    def cases(self) -> list[Case]:
        if self.tiny:
            return [Case("KV 16, sparsity 0.5", {"B": 3, "T": 24, "H": 2, "d_h": 16, "n_kv": 16, "sparsity": 0.5})]
        grid = {"B": 768, "d_h": 128, "n_kv": 128, "sparsity": 0.5}
        return [
            Case(f"Q {t}, KV 128, sparsity 0.5, H {h}", grid | {"T": t, "H": h}, 0 if h == 4 else 2, h == 4 and t == 1024)
            for t, h in ((1024, 4), (1024, 3), (1024, 1), (2048, 4))
        ]

    def variants(self) -> list[Variant]:
        """Softmax attention does no norms: nothing to compare."""
        return [v for v in super().variants() if not v.comparable]

    def moved_bytes(self, batch: Batch) -> tuple[float, float]:
        forward, backward = super().moved_bytes(batch)
        return forward, backward + batch.leaves[0].nbytes  # its backward reads the block's output, too
