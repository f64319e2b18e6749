"""Offsets that do not cut the rows into samples are refused by every operator, where reading them costs nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.dispatch import GDPAParams, Jagged, gdpa, seed_pooling, window_attention

OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gdpa": lambda rows, offsets: gdpa(rows, rows, rows, GDPAParams(), Jagged(offsets, k_offsets=offsets)),
    "window_attention": lambda rows, offsets: window_attention(rows, rows, rows, offsets, 2),
    "seed_pooling": lambda rows, offsets: seed_pooling(rows[:3], rows, rows, offsets),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 4], "offsets run from 0 to 4, expected from 0 to the 6 rows"),
        ([2, 6], "offsets run from 2 to 6, expected from 0 to the 6 rows"),
        ([0, 4, 2, 6], "offsets decrease, expected non-decreasing row offsets"),
    ],
)
def test_offsets_that_do_not_cut_the_rows_are_refused(operator: str, offsets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"{operator}: .*{message}"):
        OPERATORS[operator](torch.zeros(6, 2, 4), torch.tensor(offsets))
