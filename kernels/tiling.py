"""Launch parameters of the attention kernels over jagged rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiling:
    """Rows of queries and keys per tile (powers of two, at least 16), warps per program, pipeline stages."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2
