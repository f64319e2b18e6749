"""The launcher library on this machine's GPU: cubins and PTX against the plain forms, CUDA graphs, streams."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import dispatch
from kernels.aot import torch_backend
from kernels.aot.build import compile_jobs, link_library
from kernels.aot.jobs import selected_jobs
from kernels.aot.library import KernelError, KernelLibrary, Status
from kernels.aot.targets import BY_SM, PTX_SM
from kernels.gdpa.params import GDPAParams, Jagged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CASES = (
    ("gdpa", torch.bfloat16, 2, 64, 64),
    ("gdpa", torch.float16, 2, 64, 0),
    ("gdpa", torch.float32, 2, 64, 64),
    ("pffn", torch.bfloat16, 3, 128, 128),
)
NAMES = (
    "gdpa_bf16_h2x64_kv64", "gdpa_f16_h2x64_kvlong", "gdpa_f32_h2x64_kv64", "pffn_bf16_h3x128_kv128",
    "window_bf16_h2x64", "seed_pooling_bf16_h2x64",
)  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    """This GPU's cubins and the PTX of newer ones, under the dispatcher's backend `aot`."""
    folder = tmp_path_factory.mktemp("gpu")
    major, minor = torch.cuda.get_device_capability()
    sms = {PTX_SM, 10 * major + minor} & set(BY_SM)
    path: Path = link_library(compile_jobs(selected_jobs(sorted(sms), NAMES), folder), folder, "0.0.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(torch_backend.LIBRARY_VARIABLE, str(path))
        torch_backend.library.cache_clear()
        return torch_backend.library()


class Case:
    """Random jagged rows with empty samples and shared K/V blocks; the exact result and what torch's own dtype loses."""

    def __init__(self, operator: str, dtype: torch.dtype, heads: int, width: int, n_kv: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        lengths = torch.tensor([0, 300, 1, 129, 64, 0, 257])
        blocks = torch.tensor([100, 0, 333]) if n_kv == 0 else torch.full((3,), n_kv)
        offsets, k_offsets = (torch.nn.functional.pad(x.cumsum(0), (1, 0)).int().cuda() for x in (lengths, blocks))
        index = torch.tensor([0, 2, 1, 0, 2, 1, 0], dtype=torch.int32).cuda()
        self.jagged = Jagged(offsets, n_kv or None, index, None if n_kv else k_offsets)
        self.params = GDPAParams(scale_in=width**-0.5, scale_out=0.5)
        self.run = dispatch.gdpa if operator == "gdpa" else dispatch.pffn
        self.q = torch.randn(int(lengths.sum()), heads, width, dtype=dtype, device="cuda")
        self.k, self.v = (torch.randn(int(blocks.sum()), heads, width, dtype=dtype, device="cuda") for _ in range(2))

    def ahead(self) -> Tensor:
        with torch.no_grad():
            return self.run(self.q, self.k, self.v, self.params, self.jagged, backend="aot")

    def error_and_bound(self, found: Tensor) -> tuple[float, float]:
        exact = self.run(*(x.double() for x in (self.q, self.k, self.v)), self.params, self.jagged, backend="reference")
        low = self.run(self.q, self.k, self.v, self.params, self.jagged, backend="reference")
        floor = 1e-5 if self.q.dtype == torch.float32 else 1e-3
        return float((found - exact).abs().max()), 2 * float((low - exact).abs().max()) + floor


@pytest.mark.parametrize("shape", CASES, ids=lambda s: f"{s[0]}-{s[1]}-{s[4]}")
@pytest.mark.parametrize("ptx", [False, True])
def test_results_lose_at_most_twice_what_torch_loses(library: KernelLibrary, shape: tuple, ptx: bool) -> None:
    library.force_ptx(ptx)
    case = Case(*shape)
    error, bound = case.error_and_bound(case.ahead())
    library.force_ptx(False)
    assert error <= bound


def test_attention_reads_fused_rows_and_loses_at_most_twice_what_torch_loses(library: KernelLibrary) -> None:
    torch.manual_seed(1)
    lengths = torch.tensor([0, 300, 1, 129, 64, 0, 257])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().cuda()
    q, k, v = torch.randn(int(lengths.sum()), 3, 2, 64, dtype=torch.bfloat16, device="cuda").unbind(1)
    seeds = torch.randn(33, 2, 64, dtype=torch.bfloat16, device="cuda")
    calls = (
        (dispatch.window_attention, (q, k, v), (offsets, 40)),
        (dispatch.seed_pooling, (seeds, k, v), (offsets,)),
    )
    for run, tensors, layout in calls:
        with torch.no_grad():
            found = run(*tensors, *layout, backend="aot")
        exact = run(*(x.double() for x in tensors), *layout, backend="reference")
        low = run(*tensors, *layout, backend="reference")
        assert float((found - exact).abs().max()) <= 2 * float((low - exact).abs().max()) + 1e-3, run.__name__


def test_a_launch_is_captured_and_replayed_on_new_rows(library: KernelLibrary) -> None:
    case = Case(*CASES[0])
    case.ahead()  # loads the variant: not allowed during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.ahead()
    for _ in range(2):
        case.q.copy_(torch.randn_like(case.q))
        graph.replay()
        error, bound = case.error_and_bound(captured)
        assert error <= bound


def test_threads_on_their_own_streams_get_the_same_bits(library: KernelLibrary) -> None:
    case = Case(*CASES[3])
    expected = case.ahead()
    torch.cuda.synchronize()
    same: list[bool] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = [case.ahead() for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        same.extend(torch.equal(x, expected) for x in found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 80


def test_a_launch_never_loads(library: KernelLibrary) -> None:
    case = Case(*CASES[0])
    call = torch_backend.describe(case.q, case.k, case.v, torch.empty_like(case.q), case.params, case.jagged)
    call.max_length, call.head_width, call.heads = 300, 32, 2
    with pytest.raises(KernelError) as error:
        library.launch(call, 0)
    assert error.value.status in (Status.NOT_PREPARED, Status.UNSUPPORTED_VARIANT)
