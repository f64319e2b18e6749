"""What the adapter makes of answers of CUDA and TensorRT that are not the hoped-for ones. Both are played, with real enums."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import runtime as cuda

from serving.engines.base import DeviceError
from serving.engines.tensorrt.device import BuildRequest
from serving.engines.tensorrt.work import GraphWork

Errors = cuda.cudaError_t
OK = Errors.cudaSuccess


class Driver:
    """A CUDA runtime that notes what it is asked for; `answers` by name, a status alone or with values."""

    def __init__(self) -> None:
        self.cudaError_t, self.cudaStreamCaptureMode = Errors, cuda.cudaStreamCaptureMode
        self.asked: list[str] = []
        self.answers: dict[str, tuple[Any, ...]] = {
            "cudaStreamEndCapture": (OK, 7),
            "cudaGraphInstantiate": (OK, 8),
            "cudaPeekAtLastError": (OK,),
            "cudaGetErrorString": (OK, b"as told"),
        }

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*_: object) -> tuple[Any, ...]:
            if name != "cudaGetErrorString":
                self.asked.append(name.removeprefix("cuda"))
            return self.answers.get(name, (OK,))

        return call


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def nvidia(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter, imported beside a TensorRT that has nothing."""
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.delitem(sys.modules, "serving.engines.tensorrt.nvidia", raising=False)
    module = importlib.import_module("serving.engines.tensorrt.nvidia")
    monkeypatch.setattr(module, "cuda", driver)
    yield module
    sys.modules.pop("serving.engines.tensorrt.nvidia", None)


@pytest.fixture
def device(nvidia: Any) -> Any:
    made = nvidia.CudaDevice.__new__(nvidia.CudaDevice)
    made.index = 0
    return made


def test_errors_that_lose_the_device_are_errors_of_cuda(nvidia: Any, driver: Driver) -> None:
    assert {error.name for error in Errors} >= nvidia._STICKY
    for name in ("cudaErrorIllegalAddress", "cudaErrorTensorMemoryLeak", "cudaErrorNvlinkUncorrectable"):
        with pytest.raises(DeviceError, match=f"CUDA: {name}: as told") as lost:
            nvidia.checked((getattr(Errors, name),))
        assert lost.value.is_lost
    driver.asked.clear()
    with pytest.raises(DeviceError) as passing:
        nvidia.checked((Errors.cudaErrorMemoryAllocation,))
    assert not passing.value.is_lost
    assert driver.asked == ["GetLastError"]


def test_a_capture_leaves_no_graph_but_the_one_it_returns(device: Any, driver: Driver) -> None:
    assert device.capture(1, lambda: None) == 8
    ended = ["StreamEndCapture", "GraphInstantiate", "GraphDestroy"]
    assert driver.asked == ["SetDevice", "StreamBeginCapture", *ended]
    driver.asked.clear()
    driver.answers["cudaGraphInstantiate"] = (Errors.cudaErrorMemoryAllocation, None)
    with pytest.raises(DeviceError, match="cudaErrorMemoryAllocation"):
        device.capture(1, lambda: None)
    assert driver.asked[-4:] == ["StreamEndCapture", "GraphInstantiate", "GetLastError", "GraphDestroy"]


@pytest.mark.parametrize("ending", [(OK, 7), (Errors.cudaErrorStreamCaptureInvalidated, None)])
def test_what_failed_inside_a_capture_is_what_is_raised(device: Any, driver: Driver, ending: tuple[Any, ...]) -> None:
    driver.answers["cudaStreamEndCapture"] = ending

    def work() -> None:
        raise DeviceError("the real reason", is_lost=True)

    with pytest.raises(DeviceError, match="the real reason") as raised:
        device.capture(1, work)
    assert raised.value.is_lost
    assert "StreamEndCapture" in driver.asked, "the stream has left its capture"
    assert ("GraphDestroy" in driver.asked) == (ending[0] == OK)
    assert driver.asked[-1] == "GetLastError", "nothing that runs next finds an error"


class Context:
    """An execution context whose bindings raise what bindings raise."""

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return True

    def infer_shapes(self) -> list[str]:
        raise RuntimeError("infer_shapes error code: -1")

    def execute_async_v3(self, stream: int) -> bool:
        return False


def test_errors_of_the_bindings_are_errors_of_the_device(nvidia: Any, device: Any, driver: Driver) -> None:
    nvidia.trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=0)
    engine = SimpleNamespace(create_execution_context=lambda _: Context())
    with pytest.raises(DeviceError, match="opening a context: infer_shapes error code: -1; its log says why") as raised:
        nvidia.TensorRtProgram(engine, device, 0).open(0, {}, 1)
    assert not raised.value.is_lost
    driver.answers["cudaPeekAtLastError"] = (Errors.cudaErrorIllegalAddress,)
    with pytest.raises(DeviceError, match=r"could not run the network \(CUDA: cudaErrorIllegalAddress\)") as raised:
        nvidia.TensorRtExecution(Context(), 1).enqueue(1)
    assert raised.value.is_lost, "TensorRT says no more than no"


class Timings:
    def __init__(self, known: bytes) -> None:
        self.known = known

    def serialize(self) -> bytes:
        return self.known + b"+"


class Config:
    """A builder's configuration that takes timings which begin as its own do."""

    profiling_verbosity = None

    def __init__(self) -> None:
        self.cache: Timings | None = None

    def create_timing_cache(self, known: bytes) -> Timings:
        if known == b"broken":
            raise RuntimeError("cannot deserialize")
        return Timings(known)

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.known and not cache.known.startswith(b"own"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Timings | None:
        return self.cache

    def set_flag(self, _: object) -> None: ...

    def set_memory_pool_limit(self, *_: object) -> None: ...


@pytest.fixture
def build(nvidia: Any, tmp_path: Path) -> Callable[[Path], Config]:
    """Build something; the configuration that was used."""
    config = Config()
    trt = nvidia.trt
    trt.Builder = lambda _: SimpleNamespace(
        create_network=lambda _: None,
        create_builder_config=lambda: config,
        build_serialized_network=lambda *_: b"plan",
    )
    trt.OnnxParser = lambda *_: SimpleNamespace(parse_from_file=lambda _: True)
    trt.NetworkDefinitionCreationFlag = SimpleNamespace()
    trt.BuilderFlag, trt.MemoryPoolType = SimpleNamespace(REFIT=0), SimpleNamespace(WORKSPACE=0)
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED=0)
    runtime = nvidia.NvidiaRuntime.__new__(nvidia.NvidiaRuntime)
    runtime._logger = None

    def run(timings: Path) -> Config:
        request = BuildRequest(tmp_path / "graph.onnx", GraphWork(buckets=(), profiles=()), lambda _: {}, timings)
        assert runtime.build(request) == b"plan"
        return config

    return run


@pytest.mark.parametrize(
    ("file", "used", "warning"),
    [
        (None, b"", ""),
        (b"own timings", b"own timings", ""),
        (b"of another GPU", b"", "TensorRT does not take these timings"),
        (b"broken", b"", "cannot be used: cannot deserialize"),
    ],
)
def test_timings_of_kernels_are_used_where_they_fit_and_kept(
    build: Callable[[Path], Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: bytes | None,
    used: bytes,
    warning: str,
) -> None:
    timings = tmp_path / "cache" / "kernels.timings"
    if file is not None:
        timings.parent.mkdir()
        timings.write_bytes(file)
    config = build(timings)
    assert config.cache is not None
    assert config.cache.known == used
    assert (timings.read_bytes(), list(timings.parent.iterdir())) == (used + b"+", [timings])
    assert (warning in caplog.text) if warning else not caplog.text


def test_timings_that_cannot_be_kept_cost_no_build(
    build: Callable[[Path], Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    build(tmp_path / "cache" / "kernels.timings")
    assert "timings of kernels are not kept" in caplog.text
