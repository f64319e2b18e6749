"""`kunlun::gdpa` and `kunlun::pffn` as operators, and the options of the plain form: A1, A2, A3, refusals, opcheck."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gdpa_cases import BLOCK_LAYOUTS, LAYOUTS, integers, layout, operands
from ragged import DEVICE, offsets_of
from torch import Tensor

from kernels.activations import NAMES, activate, derivative
from kernels.dispatch import GDPAParams, Jagged, gdpa, pffn
from kernels.gdpa import op as gdpa_op
from kernels.gdpa.reference import gdpa_jagged, gdpa_jagged_backward
from kernels.pffn import op as pffn_op
from kernels.pffn.reference import pffn_jagged, pffn_jagged_backward

PARAMS = GDPAParams(("silu", "fast_gelu"), 0.3, 0.7)


@pytest.fixture(params=["plain", "triton"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both things an operator can run: the plain form, and the kernels (in the interpreter where there is no GPU)."""
    if request.param == "plain" and DEVICE == "cuda":
        pytest.skip("CUDA tensors always run the kernels")
    if request.param == "plain":
        for module in (gdpa_op, pffn_op):
            monkeypatch.setattr(module, "runs_kernels", lambda q: False)
    return str(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_the_activations(name: str) -> None:
    x = torch.linspace(-4.1, 4.1, 42, dtype=torch.float64, requires_grad=True)  # off the kinks at 0 and ±3
    (want,) = torch.autograd.grad(activate(x, (name,), 0).sum(), x)
    torch.testing.assert_close(derivative(x.detach(), (name,), 0), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a1_every_layout_is_a_loop_over_samples_and_rows(name: str) -> None:
    """The layout spelled out anew: for each query row its keys, each weighted by Act of their product."""
    jagged = layout(name)
    q, k, v, _ = operands(jagged, torch.float64)
    got = gdpa(q, k, v, PARAMS, jagged, backend="reference")
    want = torch.zeros_like(got)
    q_starts = [0] * len(got) if jagged.shared_q else jagged.q_offsets.tolist()
    k_starts = jagged.k_offsets.tolist() if jagged.k_offsets is not None else range(0, len(k) + 1, jagged.n_kv)
    for b in range(jagged.samples(len(k))):
        length = len(q) if jagged.shared_q else q_starts[b + 1] - q_starts[b]
        if jagged.q_lengths is not None:
            length = int(jagged.q_lengths[b])
        block = int(jagged.kv_index[b]) if jagged.kv_index is not None else b
        for i in range(length):
            row = b * len(q) + i if jagged.shared_q else q_starts[b] + i
            for j in range(k_starts[block + 1] - k_starts[block]):
                if jagged.window is not None and abs(i - j) > jagged.window:
                    continue
                for h, act in enumerate(PARAMS.activation):
                    key, query = k_starts[block] + j, i if jagged.shared_q else row
                    score = 0.3 * (q[query, h] * k[key, h]).sum()
                    want[row, h] += 0.7 * activate(score[None], (act,), 0) * v[key, h]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a2_closed_form_gradients_are_those_of_autograd(name: str) -> None:
    jagged = layout(name)
    *leaves, dout = operands(jagged, torch.float64)
    forms = [(gdpa_jagged, gdpa_jagged_backward)] + [(pffn_jagged, pffn_jagged_backward)] * (name in BLOCK_LAYOUTS)
    for forward, backward in forms:
        grads = [x.clone().requires_grad_() for x in leaves]
        forward(*grads, PARAMS, jagged).backward(dout)
        for ours, leaf in zip(backward(dout, *leaves, PARAMS, jagged), grads, strict=True):
            torch.testing.assert_close(ours, leaf.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["raw", "gelu", "fast_gelu", "silu", "relu_square"])
@pytest.mark.parametrize("plain", [gdpa_jagged, pffn_jagged])
def test_a2_gradcheck_in_float64(plain, activation: str) -> None:
    jagged = Jagged(offsets_of([2, 0, 3]).cpu(), 3, integers([1, 0, 1]).cpu())
    leaves = [torch.randn(n, 2, 3, dtype=torch.float64, requires_grad=True) for n in (5, 6, 6)]
    params = GDPAParams((activation,), 0.4, 0.9)
    torch.autograd.gradcheck(lambda q, k, v: plain(q, k, v, params, jagged), leaves, atol=1e-6)


def test_a3_raw_over_every_key_is_a_linear_map_in_any_layout() -> None:
    jagged = layout("shared queries")
    q, k, v, _ = operands(jagged, torch.float64)
    got = gdpa(q, k, v, GDPAParams(("raw",), 0.5, 2.0), jagged, backend="reference").unflatten(0, (-1, len(q)))
    for b, (start, end) in enumerate(zip(jagged.k_offsets[:-1], jagged.k_offsets[1:], strict=True)):
        kv = torch.einsum("nhd,nhe->hde", k[start:end], v[start:end])
        torch.testing.assert_close(got[b], torch.einsum("thd,hde->the", q, kv), rtol=1e-10, atol=1e-10)


def test_a8_a_window_as_wide_as_the_sample_is_no_window() -> None:
    wide = replace(layout("window"), window=36)
    q, k, v, _ = operands(wide, torch.float64)
    assert torch.equal(gdpa_jagged(q, k, v, PARAMS, wide), gdpa_jagged(q, k, v, PARAMS, replace(wide, window=None)))


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("name", ["candidates of users", "window", "shared queries", "padded rows"])
def test_gdpa_operator_passes_opcheck(form: str, name: str) -> None:
    jagged = Jagged(offsets_of([3, 0, 2]), 4, integers([1, 0, 1])) if name == "candidates of users" else layout(name)
    q, k, v, _ = operands(jagged, torch.float32, width=8)
    q, k, v = (x[: 8 if name == "candidates of users" and i else None] for i, x in enumerate((q, k, v)))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(gdpa_op.gdpa, (*leaves, *gdpa_op.arguments(PARAMS, jagged)), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_pffn_operator_passes_opcheck(form: str) -> None:
    jagged = layout("padded rows")
    leaves = [x.requires_grad_() for x in operands(jagged, torch.float32, width=8)[:3]]
    torch.library.opcheck(pffn_op.pffn, (*leaves, *gdpa_op.arguments(PARAMS, jagged), 1e-5, True), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_dispatcher_runs_either_form_with_equal_gradients() -> None:
    jagged = layout("jagged blocks")
    *leaves, dout = operands(jagged, torch.float32)
    for operator in (gdpa, pffn):
        results: list[tuple[Tensor, ...]] = []
        for backend in ("triton", "reference"):
            grads = [x.clone().requires_grad_() for x in leaves]
            out = operator(*grads, PARAMS, jagged, backend=backend)
            out.backward(dout)
            results.append((out, *(x.grad for x in grads)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv": None}, "either n_kv .* or k_offsets .*, found n_kv = None and k_offsets absent"),
        ({"n_kv": 20}, "k has 105 rows, expected a multiple of n_kv = 20"),
        ({"kv_index": "short"}, "kv_index has 2 entries, expected 5"),
        ({"kv_index": "beyond"}, "kv_index runs from 0 to 7, expected indices of 5 K/V blocks"),
        ({"window": -1}, "window is -1, expected None .* or a width of at least 0"),
        ({"shared_q": True}, r"shared queries have q_offsets \[0, n\] and no q_lengths, found 6 offsets"),
        ({"q_offsets": "floats"}, "expected q_offsets as int32 or int64"),
        ({"q_offsets": "decrease"}, "q_offsets decrease"),
        ({"q_offsets": "short"}, "q_offsets run from 0 to 56, expected from 0 to the 57 rows"),
        ({"q_offsets": "none"}, "expected q_offsets .* with at least one entry, found none"),
        ({"uniform_rows": 20}, "uniform_rows is 20, expected 0 or q's 57 rows over 5 samples"),
        ({"q_lengths": "long"}, "q_lengths must lie between 0 and the rows that q_offsets give"),
    ],
)
def test_refusals_name_what_was_found(change: dict[str, object], message: str) -> None:
    jagged = Jagged(offsets_of([3, 0, 37, 1, 16]).cpu(), 21)
    q, k, v, _ = (x.cpu() for x in operands(jagged, torch.float32))
    values = {
        "short": torch.tensor([0, 1]) if "kv_index" in change else torch.tensor([0, 3, 3, 40, 41, 56]),
        "none": torch.tensor([], dtype=torch.int32), "beyond": torch.tensor([0, 1, 2, 7, 4]),
        "floats": jagged.q_offsets.float(),
        "decrease": torch.tensor([0, 5, 3, 40, 41, 57]), "long": torch.tensor([3, 0, 37, 2, 16]),
    }  # fmt: skip
    broken = replace(jagged, **{name: values.get(value, value) for name, value in change.items()})
    with pytest.raises(ValueError, match=message):
        gdpa(q, k, v, PARAMS, broken)


def test_refusals_of_dtypes_backends_and_the_block() -> None:
    jagged = Jagged(offsets_of([3, 0, 37, 1, 16]), 21)
    q, k, v, _ = operands(jagged, torch.float32)
    with pytest.raises(ValueError, match=r"found q torch.float16, k torch.float32, v torch.float32"):
        gdpa(q.half(), k, v, PARAMS, jagged)
    with pytest.raises(ValueError, match=r"backend 'triton': expected float32, float16 or bfloat16, found torch.float64"):
        gdpa(q.double(), k.double(), v.double(), PARAMS, jagged, backend="triton")
    with pytest.raises(ValueError, match=r"backend: expected one of auto, triton, aot, reference, onnx, found 'cuda'"):
        gdpa(q, k, v, PARAMS, jagged, backend="cuda")
    with pytest.raises(ValueError, match="found window = 3, shared_q = False; use gdpa"):
        pffn(q, k, v, PARAMS, replace(jagged, window=3))
    with pytest.raises(ValueError, match="expected 1 or 2 names"):
        gdpa(q, k, v, GDPAParams(("silu", "silu", "raw")), jagged)


def test_without_a_gpu_the_kernels_refuse_and_the_plain_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.backend.interpreting", lambda: False)
    jagged = Jagged(offsets_of([3, 2]).cpu(), 4)
    q, k, v, _ = (x.cpu() for x in operands(jagged, torch.float32))
    with pytest.raises(ValueError, match=r"backend 'triton': expected CUDA tensors \(or TRITON_INTERPRET=1\), found cpu"):
        pffn(q, k, v, GDPAParams(), jagged, backend="triton")
    assert torch.equal(pffn(q, k, v, GDPAParams(), jagged), pffn_jagged(q, k, v, GDPAParams(), jagged))
