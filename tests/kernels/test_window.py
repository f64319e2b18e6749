"""Sliding-window attention: A8 (equals the dense masked form) and its memory."""

from __future__ import annotations

import pytest
import torch

from kernels.window.padded import window_attention, window_attention_dense
from model.architectures.kunlun.flops import window_pairs


@pytest.mark.parametrize("steps", [1, 3, 8, 21, 64])
@pytest.mark.parametrize("window", [1, 4, 7, 64, 100])
def test_a8_blocked_equals_dense_on_real_rows(steps: int, window: int) -> None:
    torch.manual_seed(steps * 1000 + window)
    lengths = torch.tensor([steps, max(1, steps // 2), 1, 0])
    q, k, v = (torch.randn(4, 2, steps, 8, dtype=torch.float64) for _ in range(3))
    got, want = window_attention(q, k, v, lengths, window), window_attention_dense(q, k, v, lengths, window)
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(got[b, :, :length], want[b, :, :length], rtol=1e-10, atol=1e-10)
    assert torch.isfinite(got).all()


def test_a8_a_window_that_covers_the_row_is_full_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 10, 8, dtype=torch.float64) for _ in range(3))
    full = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
    torch.testing.assert_close(window_attention(q, k, v, torch.tensor([10, 10]), 9), full, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("steps", "window"), [(10, 2), (10, 9), (10, 10), (5, 8), (1, 1)])
def test_a8_pair_count(steps: int, window: int) -> None:
    brute = sum(abs(i - j) <= window for i in range(steps) for j in range(steps))
    assert window_pairs(steps, window) == brute


def test_no_tensor_grows_with_the_square_of_the_length() -> None:
    """Peak bytes allocated grow linearly in T at a fixed window."""

    def largest_tensor(steps: int) -> int:
        sizes: list[int] = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor):
                    sizes.append(out.untyped_storage().nbytes())
                return out

        q = torch.randn(1, 1, steps, 4)
        with Watch():
            window_attention(q, q, q, torch.tensor([steps]), 8)
        return max(sizes)

    assert largest_tensor(4096) <= 2.1 * largest_tensor(2048)
