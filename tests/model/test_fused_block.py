"""The whole model with the fused PFFN block in place of its padded form: what a GPU trains with (Triton's interpreter here)."""

from __future__ import annotations

import pytest
import torch
from test_user_split import ENCODE_SIZES, LENGTHS, inputs

from kernels.backend import preferred
from model.ranker import KunlunRanker


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in Triton's interpreter. It must be chosen before Triton's functions are defined."""
    if torch.cuda.is_available():
        pytest.skip("on a GPU the kernels run compiled: tests/kernels and gpu-check compare them")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("Triton was imported for compilation before this test")


@pytest.mark.usefixtures("interpreter")
def test_states_and_gradients_are_those_of_the_padded_form(model: KunlunRanker) -> None:
    given = inputs(model.encode_user.signature, ENCODE_SIZES)
    results = []
    for backend in ("triton", "reference"):
        model.zero_grad()
        with preferred(backend):
            states = model.encode_user(*given.values())
            weights = [torch.arange(state.numel()).cos().view_as(state) for state in states]
            torch.stack([(state * weight).sum() for state, weight in zip(states, weights, strict=True)]).sum().backward()
        grads = {name: p.grad.clone() for name, p in model.encode_user.named_parameters() if p.grad is not None}
        results.append((states, grads))
    (ours, our_grads), (theirs, their_grads) = results
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert our_grads.keys() == their_grads.keys()
    assert any("to_k" in name for name in our_grads)
    for name, grad in our_grads.items():
        assert (grad - their_grads[name]).norm() <= 1e-4 * their_grads[name].norm() + 1e-5, name


@pytest.mark.usefixtures("interpreter")
def test_padding_of_a_history_reaches_no_state(model: KunlunRanker) -> None:
    given = inputs(model.encode_user.signature, ENCODE_SIZES)
    noisy = {name: x.clone() for name, x in given.items()}
    for event, lengths in LENGTHS.items():
        for name in (f"{event}_rows", f"{event}_dense"):
            for user, length in enumerate(lengths):
                if name in noisy:
                    noisy[name][user, length:] = 9.0
    with torch.no_grad(), preferred("triton"):
        for a, b in zip(model.encode_user(*given.values()), model.encode_user(*noisy.values()), strict=True):
            assert torch.equal(a, b)
