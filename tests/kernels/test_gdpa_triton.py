"""The Triton kernels of GDPA and of the PFFN block against the plain forms in float64 (A2, A4–A7, A9), gradients included.

The bound is relative to what PyTorch's own low precision loses: at most twice the plain form's error in the same dtype, plus a
little. Without a GPU the kernels run in Triton's interpreter (see conftest), on tiles of 16 so that small batches have several.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gdpa_cases import BLOCK_LAYOUTS, LAYOUTS, layout, operands
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ragged import DEVICE, offsets_of, rows
from torch import Tensor

from kernels.activations import NAMES
from kernels.dispatch import gdpa, pffn
from kernels.gdpa import launch
from kernels.gdpa.params import GDPAParams, Jagged
from kernels.gdpa.reference import gdpa_jagged, gdpa_jagged_backward
from kernels.pffn import launch as pffn_launch
from kernels.pffn.reference import pffn_jagged, pffn_jagged_backward
from kernels.variants import Blocks

SMALL = Blocks(16, 16, 4, 1)
FLOOR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # 16 units in the last place of f32, two of 16 bits
DTYPES = list(FLOOR)
Gradients = tuple[Tensor, Tensor, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice")


def run_gdpa(x: tuple[Tensor, ...], params: GDPAParams, jagged: Jagged, blocks: Blocks = SMALL) -> tuple[Tensor, ...]:
    q, k, v, dout = x
    out = launch.forward(q, k, v, jagged, params, blocks)
    return (out, *launch.backward(q, k, v, dout, jagged, params, (blocks, blocks)))


def run_pffn(x: tuple[Tensor, ...], params: GDPAParams, jagged: Jagged, blocks: Blocks = SMALL) -> tuple[Tensor, ...]:
    q, k, v, dout = x
    out, row_statistics = pffn_launch.forward(q, k, v, jagged, params, blocks=blocks)
    return (out, *pffn_launch.backward(q, k, v, out, dout, row_statistics, jagged, params, (blocks, blocks)))


def plain(form: str, x: tuple[Tensor, ...], params: GDPAParams, jagged: Jagged) -> tuple[Tensor, ...]:
    q, k, v, dout = x
    forward, backward = (gdpa_jagged, gdpa_jagged_backward) if form == "gdpa" else (pffn_jagged, pffn_jagged_backward)
    return (forward(q, k, v, params, jagged), *backward(dout, q, k, v, params, jagged))


def distance(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖, infinite when anything in `got` is not finite."""
    if not torch.isfinite(got).all():
        return float("inf")
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30))


def assert_close(form: str, got: tuple[Tensor, ...], x: tuple[Tensor, ...], params: GDPAParams, jagged: Jagged) -> None:
    exact = plain(form, tuple(t.double() for t in x), params, jagged)
    low = plain(form, x, params, jagged)
    dtype = x[1].dtype
    for name, ours, theirs, want in zip(("out", "dq", "dk", "dv"), got, low, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == want.shape
        assert distance(ours, want) <= 2 * distance(theirs, want) + FLOOR[dtype], name


@pytest.mark.parametrize("name", ["dense", "candidates of users", "padded rows", "uniform rows"])
@pytest.mark.parametrize("form", ["gdpa", "pffn"])
def test_keys_in_one_tile_give_dq_on_the_way_to_dk(form: str, name: str) -> None:
    jagged = layout(name)
    params = GDPAParams(("fast_gelu", "silu"), 0.3, 0.7)
    blocks = Blocks(16, 32, 4, 1)
    for dtype in (torch.float32, torch.float16):
        x = operands(jagged, dtype)
        assert_close(form, (run_gdpa if form == "gdpa" else run_pffn)(x, params, jagged, blocks), x, params, jagged)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gdpa_loses_no_more_than_low_precision_does(name: str, dtype: torch.dtype) -> None:
    jagged = layout(name)
    x = operands(jagged, dtype)
    params = GDPAParams(("fast_gelu", "silu"), 0.3, 0.7)
    assert_close("gdpa", run_gdpa(x, params, jagged), x, params, jagged)


@pytest.mark.parametrize("name", BLOCK_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_block_loses_no_more_than_low_precision_does(name: str, dtype: torch.dtype) -> None:
    jagged = layout(name)
    x = operands(jagged, dtype)
    params = GDPAParams(("fast_gelu",), 0.3, 0.7)
    assert_close("pffn", run_pffn(x, params, jagged), x, params, jagged)


@pytest.mark.parametrize("activation", NAMES)
def test_every_activation_and_its_derivative(activation: str) -> None:
    jagged = layout("dense")
    x = operands(jagged, torch.float32)
    params = GDPAParams((activation, "raw"), 0.9, 0.7)
    assert_close("gdpa", run_gdpa(x, params, jagged), x, params, jagged)


def test_more_heads_than_a_word_holds_codes_may_each_have_their_own_activation() -> None:
    jagged = Jagged(offsets_of([3, 0, 18]), 5)
    x = operands(jagged, torch.float32, heads=9, width=4)
    params = GDPAParams((*NAMES, "silu"), 0.9, 0.7)
    assert_close("gdpa", run_gdpa(x, params, jagged), x, params, jagged)


@pytest.mark.parametrize("name", ["window", "window of one"])
def test_a_window_of_any_size_is_no_window(name: str) -> None:
    """Sums with it stay in 32 bits, whatever it is."""
    jagged = replace(layout(name), window=2**31 - 1)
    x = operands(jagged, torch.float32)
    params = GDPAParams(("fast_gelu", "silu"), 0.3, 0.7)
    assert_close("gdpa", run_gdpa(x, params, jagged), x, params, replace(jagged, window=None))


@pytest.mark.parametrize(("heads", "width"), [(1, 32), (2, 64), (3, 96), (4, 128)])
def test_head_widths(heads: int, width: int) -> None:
    jagged = Jagged(offsets_of([9, 0, 18]), 24)
    params = GDPAParams(("fast_gelu",), 0.1, 0.7)
    x = operands(jagged, torch.float16, heads, width)
    assert_close("gdpa", run_gdpa(x, params, jagged), x, params, jagged)
    assert_close("pffn", run_pffn(x, params, jagged, Blocks(16, 32, 4, 1)), x, params, jagged)


@pytest.mark.parametrize("blocks", [Blocks(16, 64, 4, 1, unit_tiles=2), Blocks(32, 64, 4, 1, unit_tiles=3)])
def test_units_of_several_tiles_change_no_result(blocks: Blocks) -> None:
    jagged = layout("several tiles")
    params = GDPAParams(("silu", "relu", "gelu"), 0.3, 0.7)
    x = operands(jagged, torch.float32, heads=3)
    assert_close("gdpa", run_gdpa(x, params, jagged, blocks), x, params, jagged)
    assert_close("pffn", run_pffn(x, params, jagged, blocks), x, params, jagged)


def test_a7_norms_span_all_heads_and_survive_a_large_mean() -> None:
    jagged = layout("dense")
    q, *rest = operands(jagged, torch.float32)
    x = (q * torch.tensor([1.0, 30.0], device=DEVICE)[:, None] + 100.0, *rest)
    assert_close("pffn", run_pffn(x, GDPAParams(), jagged), x, GDPAParams(), jagged)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recovering_r_from_out_and_q_holds_where_q_is_larger(dtype: torch.dtype) -> None:
    jagged = layout("dense")
    q, *rest = operands(jagged, dtype, heads=4, width=32)
    x = (q * 8, *rest)
    params = GDPAParams(("fast_gelu",), 0.3, 0.7)
    assert_close("pffn", run_pffn(x, params, jagged), x, params, jagged)


def test_residual_stream_in_float32_beside_16_bit_keys() -> None:
    jagged = layout("dense")
    q, k, v, dout = operands(jagged, torch.float32)
    x = (q, k.bfloat16(), v.bfloat16(), dout)
    params = GDPAParams(("fast_gelu",), 0.3, 0.7)
    out, dq, dk, dv = run_pffn(x, params, jagged)
    assert (out.dtype, dq.dtype, dk.dtype, dv.dtype) == (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16)
    for ours, want in zip((out, dq, dk, dv), plain("pffn", tuple(t.double() for t in x), params, jagged), strict=True):
        assert distance(ours, want) <= FLOOR[torch.bfloat16]


@pytest.mark.parametrize("blocks", [SMALL, Blocks(16, 32, 4, 1)])
@pytest.mark.parametrize("run", [run_gdpa, run_pffn])
def test_a5_padding_rows_are_zero_and_get_and_give_no_gradient(run, blocks: Blocks) -> None:
    jagged = layout("padded rows")
    x = operands(jagged, torch.float32)
    clean = run(x, GDPAParams(), jagged, blocks)
    outside = torch.ones(len(x[0]), dtype=torch.bool, device=DEVICE)
    for start, length in zip(jagged.q_offsets.tolist(), jagged.q_lengths.tolist(), strict=False):
        outside[start : start + length] = False
    dirty = [t.clone() for t in x]
    dirty[0][outside], dirty[3][outside] = 7.0, -3.0
    for ours, theirs in zip(run(tuple(dirty), GDPAParams(), jagged, blocks), clean, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.count_nonzero(clean[0][outside]) == 0
    assert torch.count_nonzero(clean[1][outside]) == 0


@pytest.mark.parametrize("run", [run_gdpa, run_pffn])
def test_a6_a9_a_sample_has_the_same_bits_alone_and_beside_other_neighbours(run) -> None:
    jagged = layout("dense")
    begin, end = jagged.q_offsets.tolist()[2:4]
    q, k, v, dout = operands(jagged, torch.float32)
    mine, keys = slice(begin, end), slice(2 * 21, 3 * 21)
    alone = run((q[mine], k[keys], v[keys], dout[mine]), GDPAParams(), Jagged(offsets_of([end - begin]), 21))
    for tensor, own in ((q, mine), (k, keys), (v, keys), (dout, mine)):
        kept = tensor[own].clone()
        tensor.fill_(float("nan"))
        tensor[own] = kept
    beside = run((q, k, v, dout), GDPAParams(), jagged)
    for ours, theirs, own in zip(beside, alone, (mine, mine, keys, keys), strict=True):
        assert torch.equal(ours[own], theirs)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 35), max_size=4), n_kv=st.integers(1, 40), heads=st.integers(1, 3),
    width=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_ragged_batch(lengths: list[int], n_kv: int, heads: int, width: int, seed: int) -> None:
    jagged = Jagged(offsets_of(lengths), n_kv)
    params = GDPAParams(("fast_gelu",), width**-0.5, n_kv**-0.5)
    x = operands(jagged, torch.float32, heads, width, seed)
    assert_close("gdpa", run_gdpa(x, params, jagged), x, params, jagged)
    assert_close("pffn", run_pffn(x, params, jagged), x, params, jagged)


def test_block_on_padded_rows_through_the_dispatcher_equals_the_exported_form() -> None:
    lengths = torch.tensor([7, 0, 20], device=DEVICE)
    q = rows(3, 20, 2, 16, dtype=torch.float32, seed=1)
    q = q * (torch.arange(20, device=DEVICE)[None] < lengths[:, None])[..., None, None]
    k, v = (rows(3, 8, 2, 16, dtype=torch.float32, seed=seed) for seed in (2, 3))
    weight = rows(*q.shape, dtype=torch.float32, seed=4) * (q != 0)
    results = []
    for backend in ("triton", "reference"):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        out = pffn(*leaves, GDPAParams(("fast_gelu",), 0.3, 0.7), lengths=lengths, backend=backend)
        (out * weight).sum().backward()
        results.append((out, *(leaf.grad for leaf in leaves)))
    inside = (q != 0).float()
    for i, (ours, theirs) in enumerate(zip(*results, strict=True)):
        torch.testing.assert_close(ours, theirs * inside if i == 1 else theirs, rtol=2e-5, atol=2e-5)


def test_autocast_multiplies_in_16_bits_and_keeps_the_residual_stream_in_float32() -> None:
    q, k, v = (rows(*shape, 2, 16, dtype=torch.float32, seed=seed) for seed, shape in enumerate([(2, 9), (2, 8), (2, 8)]))
    leaves = [t.clone().requires_grad_() for t in (q.bfloat16(), k, v)]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = pffn(*leaves, GDPAParams(), backend="triton")
        mixed = gdpa(*leaves, GDPAParams(), backend="triton")
    out.sum().backward()
    assert (out.dtype, mixed.dtype) == (torch.float32, torch.bfloat16)
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32, torch.float32]
    want = pffn(leaves[0].detach().double(), k.double(), v.double(), GDPAParams())
    assert distance(out, want) <= FLOOR[torch.bfloat16]
