"""The table of variants and tile sizes: complete, well formed, and smaller where a GPU has less shared memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from kernels import variants
from kernels.gdpa.launch import PROGRAMS, choose, enough_units
from kernels.gdpa.params import Jagged
from kernels.variants import Blocks

PASSES = list(
    product(
        ("gdpa", "pffn"), ("forward", "backward_q", "backward_kv"), (2, 4), (16, 64, 96, 128), (0, 7, 64, 128, 200, 256, 999)
    )
)


@pytest.mark.parametrize("shared_kib", [99, 163, 227])
def test_every_kernel_has_tiles_and_they_are_powers_of_two(shared_kib: int) -> None:
    for operator, direction, size, width, n_kv in PASSES:
        b = variants.blocks(operator, direction, size, width, n_kv, shared_kib)
        assert b.m >= 16
        assert b.n >= 16
        assert all(x & (x - 1) == 0 for x in (b.m, b.n, b.warps, b.unit_tiles)), (operator, direction, size, width, n_kv)
        if 0 < n_kv <= 16:
            assert b.n == 16  # a tile holds no more keys than there are, rounded up
        if size == 2 and shared_kib < 227:
            assert b.m * b.n <= 64 * 64


def test_shipped_variants_have_names_of_their_own() -> None:
    names = [v.name for v in variants.shipped()]
    assert len(set(names)) == len(names)
    assert "pffn_bf16_h4x128_kv128" in names


def test_units_of_several_tiles_only_for_short_keys_and_large_batches() -> None:
    k = torch.empty(8 * 128, 4, 128, dtype=torch.bfloat16)
    layout = Jagged(torch.zeros(9, dtype=torch.int32), 128)
    short = choose("gdpa", "forward", k, layout)
    assert short.unit_tiles == 16
    assert choose("gdpa", "forward", k, replace(layout, window=3)).unit_tiles == 1
    assert choose("gdpa", "forward", k, replace(layout, n_kv=None, k_offsets=layout.q_offsets)).unit_tiles == 1
    for rows in (1, 1000, 100_000, 2_000_000):
        b = enough_units(short, torch.empty(rows, 4, 128, device="meta"))
        assert b.unit_tiles == 1 or rows // b.m * 4 // b.unit_tiles >= PROGRAMS
    assert b.unit_tiles == 16
    assert enough_units(Blocks(64, 64, 4, 1), torch.empty(10**7, 1, 8, device="meta")).unit_tiles == 1
