"""Work lists: every row once, longest samples first, spare entries at the end."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import DEVICE

from kernels import triton_tiles
from kernels.tiles import longest_first, readers, tile_list, work_list


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


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.sampled_from([1, 16]), st.booleans(), st.booleans())
def test_the_kernel_makes_the_same_list(lengths: list[int], tile: int, padded: bool, longest: bool) -> None:
    given_lengths = torch.tensor(lengths, dtype=torch.int32)
    ends = (torch.full_like(given_lengths, 50) if padded else given_lengths).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends]).int()
    arguments = (offsets, given_lengths if padded else None, int(offsets[-1]), tile)
    want = work_list(*arguments, longest_first=longest)
    got = triton_tiles.work_list(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in arguments), longest)
    assert torch.equal(got.cpu(), want)


@given(st.lists(st.integers(0, 4), max_size=9))
def test_readers_are_the_inverse_of_the_index(index: list[int]) -> None:
    offsets, samples = (x.tolist() for x in readers(torch.tensor(index, dtype=torch.int32), 5))
    for block in range(5):
        assert samples[offsets[block] : offsets[block + 1]] == [i for i, b in enumerate(index) if b == block]
