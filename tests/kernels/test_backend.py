"""Where operators run: kernels are launched on the GPU that holds the tensors, whichever one is current."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from ragged import DEVICE, offsets_of, rows
from torch import Tensor

from kernels.dispatch import GDPAParams, Jagged, gdpa, pffn, seed_pooling, window_attention
from kernels.gdpa import op as gdpa_op
from kernels.pffn import op as pffn_op
from kernels.seed_pooling import op as seed_pooling_op
from kernels.window import op as window_op

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "gdpa": lambda q, k, v, offsets: gdpa(q, k, v, GDPAParams(), Jagged(offsets, k_offsets=offsets), backend="triton"),
    "pffn": lambda q, k, v, offsets: pffn(q, k, v, GDPAParams(), Jagged(offsets, k_offsets=offsets), backend="triton"),
    "window_attention": lambda q, k, v, offsets: window_attention(q, k, v, offsets, 2, backend="triton"),
    "seed_pooling": lambda q, k, v, offsets: seed_pooling(q, k, v, offsets, backend="triton"),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_are_launched_with_the_device_of_their_rows_current(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []

    @contextmanager
    def watched(x: Tensor) -> Iterator[None]:
        seen.append(x.device)
        yield

    for module in (gdpa_op, pffn_op, window_op, seed_pooling_op):
        monkeypatch.setattr(module, "on_device_of", watched)
    leaves = [rows(5, 1, 16, dtype=torch.float32, seed=seed).requires_grad_() for seed in range(3)]
    OPERATORS[operator](*leaves, offsets_of([3, 2])).sum().backward()
    assert [device.type for device in seen] == [DEVICE, DEVICE]  # forward and backward


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("operator", OPERATORS)
def test_tensors_may_be_on_another_gpu_than_the_current_one(operator: str) -> None:
    leaves = [rows(5, 1, 16, dtype=torch.float32, seed=seed) for seed in range(3)]
    here = OPERATORS[operator](*leaves, offsets_of([3, 2]))
    there = OPERATORS[operator](*(x.to("cuda:1") for x in leaves), offsets_of([3, 2]).to("cuda:1"))
    assert there.device == torch.device("cuda:1")
    assert torch.equal(here.cpu(), there.cpu())
