"""The backend `aot` of the dispatcher: what it asks for before it touches a library. Its numbers need a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels import dispatch
from kernels.aot import torch_backend
from kernels.gdpa.params import GDPAParams, Jagged


def rows(heads: int = 2, width: int = 32) -> tuple[torch.Tensor, torch.Tensor, Jagged]:
    return torch.zeros(7, heads, width), torch.zeros(64, heads, width), Jagged(torch.tensor([0, 7], dtype=torch.int32), n_kv=64)


def test_it_wants_cuda_tensors_and_says_so() -> None:
    q, k, jagged = rows()
    with pytest.raises(ValueError, match="backend 'aot': expected CUDA tensors, found cpu"):
        dispatch.gdpa(q, k, k, GDPAParams(), jagged, backend="aot")
    with pytest.raises(ValueError, match=r"backend 'aot': expected float32, float16 or bfloat16, found torch.float64"):
        dispatch.pffn(q.double(), k.double(), k.double(), GDPAParams(), jagged, backend="aot")


def test_a_call_is_described_field_by_field() -> None:
    q, k, jagged = rows()
    call = torch_backend.describe(q, k, k, torch.empty_like(q), GDPAParams(("silu",), 0.5, 2.0), jagged, block=True, eps=1e-3)
    assert (call.dtype, call.activation, call.block, call.samples, call.heads, call.head_width, call.n_kv) == (
        0,
        6,
        1,
        1,
        2,
        32,
        64,
    )
    assert (call.q, call.k, call.q_offsets, call.kv_index) == (q.data_ptr(), k.data_ptr(), jagged.q_offsets.data_ptr(), None)
    assert (call.scale_in, call.scale_out, call.eps) == (0.5, 2.0, pytest.approx(1e-3))


def test_attention_is_described_with_the_strides_of_fused_rows() -> None:
    q, k, v = torch.zeros(7, 3, 2, 32, dtype=torch.bfloat16).unbind(1)
    offsets, out = torch.tensor([0, 7], dtype=torch.int32), torch.zeros(7, 2, 32, dtype=torch.bfloat16)
    call = torch_backend.describe_window(q, k, v, out, offsets, 100)
    assert (call.dtype, call.samples, call.heads, call.head_width, call.window) == (2, 1, 2, 32, 7)
    assert (call.q_row, call.q_head, call.v_row, call.v_head, call.units) == (192, 32, 192, 32, None)
    assert (call.k, call.offsets, call.scale) == (k.data_ptr(), offsets.data_ptr(), pytest.approx(32**-0.5))
    pooled = torch_backend.describe_seed_pooling(q[:5].contiguous(), k, v, torch.zeros(1, 5, 2, 32), offsets)
    assert (pooled.n_seeds, pooled.samples, pooled.k_row, pooled.v_head, pooled.order) == (5, 1, 192, 32, None)


def test_attention_wants_cuda_tensors_and_no_gradients() -> None:
    x, offsets = torch.zeros(7, 2, 32), torch.tensor([0, 7], dtype=torch.int32)
    with pytest.raises(ValueError, match="backend 'aot': expected CUDA tensors, found cpu"):
        dispatch.window_attention(x, x, x, offsets, 3, backend="aot")
    with pytest.raises(ValueError, match="backend 'aot': expected CUDA tensors, found cpu"):
        dispatch.seed_pooling(x, x, x, offsets, backend="aot")
    x.requires_grad_()
    with pytest.raises(ValueError, match="holds forward kernels alone, use 'triton'"):
        torch_backend.window_attention(x, x, x, offsets, 3)
    with pytest.raises(ValueError, match="holds forward kernels alone, use 'triton'"):
        torch_backend.seed_pooling(x, x, x, offsets)


def test_batches_without_keys_need_no_launch() -> None:
    """Empty tensors have no address; the kernels' own answer would be zeros."""
    q, _, jagged = rows()
    none = torch.zeros(0, 2, 32)
    nothing = Jagged(jagged.q_offsets, k_offsets=torch.tensor([0, 0], dtype=torch.int32))
    assert torch.equal(torch_backend.gdpa(q + 1, none, none, GDPAParams(), nothing), torch.zeros_like(q))
    pooled = torch_backend.seed_pooling(q + 1, none, none, torch.tensor([0, 0, 0]))
    assert torch.equal(pooled, torch.zeros(2, *q.shape))


def test_what_was_not_compiled_ahead_is_refused_by_name() -> None:
    q, k, jagged = rows()
    out = torch.empty_like(q)
    with pytest.raises(ValueError, match="activation: expected one for all heads ahead of time, found relu, gelu"):
        torch_backend.describe(q, k, k, out, GDPAParams(("relu", "gelu")), jagged)
    windowed = Jagged(jagged.q_offsets, n_kv=64, window=3)
    with pytest.raises(ValueError, match="compiled just in time only; use the backend 'triton'"):
        torch_backend.describe(q, k, k, out, GDPAParams(), windowed)
    with pytest.raises(ValueError, match=r"q_offsets: expected contiguous int32, found torch.int64"):
        torch_backend.describe(q, k, k, out, GDPAParams(), Jagged(jagged.q_offsets.long(), n_kv=64))
    with pytest.raises(ValueError, match="k: expected a contiguous tensor"):
        torch_backend.describe(q, k.half(), k, out, GDPAParams(), jagged)
    with pytest.raises(ValueError, match="holds forward kernels alone, use 'triton'"):
        torch_backend.gdpa(q.requires_grad_(), k, k, GDPAParams(), jagged)


def test_a_missing_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch_backend.library.cache_clear()
    monkeypatch.setenv(torch_backend.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(FileNotFoundError, match=r"run `python -m kernels.aot build` or set KUNLUN_KERNELS"):
        torch_backend.library()
