"""Launch parameters of the attention kernels over jagged rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Tiling:
    """Rows of queries and keys per tile (powers of two, at least 16), warps per program, pipeline stages."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2

    def for_dtype(self, dtype: torch.dtype) -> Tiling:
        """float32 rows are twice as wide: half of the rows per tile, so that tiles fit registers and shared memory."""
        if dtype != torch.float32:
            return self
        return replace(self, queries=max(16, self.queries // 2), keys=max(16, self.keys // 2))
