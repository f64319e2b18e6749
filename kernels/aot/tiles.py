"""Tile sizes per compute capability for kernels that are compiled ahead of time: the largest that spill no register.

`kernels.variants.blocks` is tuned on one GPU; some of its tiles need more registers or shared memory than others have. The
table `tiles.json` holds those exceptions: for a class of variants and an SM the first of `candidates` that compiles without a
spill and fits. `python -m kernels.aot tiles` finds them again after a change of the kernels (minutes), and the static report
names every kernel that no longer holds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kernels import variants as shipped
from kernels.aot import attention
from kernels.aot.attention import Attention
from kernels.variants import Blocks

TABLE = Path(__file__).parent / "tiles.json"
Shipped = shipped.Variant | Attention


def tile_class(v: Shipped) -> str:
    """Variants of one class share tile sizes: f16 and bf16 compile alike, heads only change strides."""
    bits = 32 if v.dtype == "f32" else 16
    kind = f"{v.operator}_{bits}bit_{shipped.padded_width(v.head_width)}"
    return kind if isinstance(v, Attention) else f"{kind}_kv{v.n_kv or 'long'}"


def blocks(v: Shipped, sm: int) -> Blocks:
    """Tile sizes of a shipped variant on one SM: the tuned ones, unless the table has an exception."""
    found = _table().get(tile_class(v), {}).get(str(sm))
    return found or tuned(v)


def tuned(v: Shipped) -> Blocks:
    """What `kernels.variants` says for a just-in-time launch."""
    if isinstance(v, Attention):
        return attention.tuned(v)
    return shipped.blocks(v.operator, "forward", attention.BYTES[v.dtype], v.head_width, v.n_kv)


def candidates(v: Shipped) -> Iterator[Blocks]:
    """From the tuned tiles downwards: fewer stages, then more warps for the same tile, then smaller tiles."""
    start = tuned(v)
    tiles = [(start.m, start.n), (64, start.n), (64, min(start.n, 64)), (32, min(start.n, 64)), (32, 32), (16, 32)]
    for m, n in dict.fromkeys(tiles):
        if m > start.m or n > start.n:
            continue
        for warps in dict.fromkeys((start.warps if m == start.m else 4, 8 if m >= 64 else 4)):
            for stages in range(start.stages, 0, -1):
                yield replace(start, m=m, n=n, warps=warps, stages=stages)


def write_table(found: dict[str, dict[str, Blocks]]) -> None:
    """One line per class, so that a change is readable in a diff."""
    rows = {name: dict(sorted(row.items(), key=lambda entry: int(entry[0]))) for name, row in sorted(found.items()) if row}
    lines = [f"  {json.dumps(name)}: {json.dumps({sm: asdict(b) for sm, b in row.items()})}" for name, row in rows.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    _table.cache_clear()


@functools.cache
def _table() -> dict[str, dict[str, Blocks]]:
    table: dict[str, dict[str, dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: {sm: Blocks(**b) for sm, b in row.items()} for name, row in table.items()}
