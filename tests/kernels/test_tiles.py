"""Work lists: every row once, longest samples first, spare entries at the end."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.tiles import longest_first, tile_list


@given(st.lists(st.integers(0, 50), max_size=8), st.sampled_from([1, 4, 16]))
def test_every_row_is_in_one_tile_and_long_samples_come_first(lengths: list[int], tile: int) -> None:
    offsets = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)
    tiles = tile_list(offsets, sum(lengths), tile)
    assert tiles.shape == (sum(lengths) // tile + len(lengths), 2)
    real = [entry for entry in tiles.tolist() if entry[0] >= 0]
    assert real == tiles.tolist()[: len(real)]
    assert all(row == [-1, 0] for row in tiles.tolist()[len(real) :])
    covered = sorted((s, r + i) for s, r in real for i in range(tile) if r + i < lengths[s])
    assert covered == [(s, r) for s, length in enumerate(lengths) for r in range(length)]
    assert len(real) == sum(-(-length // tile) for length in lengths)  # no tile without rows
    order = [lengths[s] for s, _ in real]
    assert order == sorted(order, reverse=True)
    assert longest_first(offsets).tolist() == sorted(range(len(lengths)), key=lambda s: -lengths[s])
