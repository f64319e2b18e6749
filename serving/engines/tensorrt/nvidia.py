"""`Runtime` and its parts on NVIDIA GPUs: TensorRT 10 or 11, and the CUDA runtime through cuda-bindings.

Imported only where an engine is built or opened. Nothing here decides anything; that is in `session`, `engine` and `build`,
which tests drive through a stand-in. Errors of CUDA and TensorRT become `DeviceError`; after one of `_STICKY` the process has
lost its context.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cuda

from kernels.tensorrt.loader import PluginError, find_plugin, register
from model.artifact import ArtifactError
from serving.engines.base import DeviceError
from serving.engines.tensorrt.device import BuildRequest, Device, HostBlock
from serving.engines.tensorrt.open import NoRuntime

_STICKY = frozenset(
    {
        "cudaErrorIllegalAddress",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorAssert",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorMisalignedAddress",
        "cudaErrorECCUncorrectable",
        "cudaErrorDevicesUnavailable",
        "cudaErrorContained",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorTensorMemoryLeak",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorExternalDevice",
    }
)
WORKSPACE_BYTES = 4 << 30
_LOG = logging.getLogger(__name__)


def checked(answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings returned beside its status; raises `DeviceError`."""
    status, *values = answer
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        words = text.decode() if isinstance(text, bytes) else str(text)
        cuda.cudaGetLastError()  # which clears it, if it can be: TensorRT must not take it for an error of its own
        raise DeviceError(f"CUDA: {status.name}: {words}", is_lost=status.name in _STICKY)
    return values[0] if len(values) == 1 else tuple(values)


def refused(message: str) -> DeviceError:
    """What TensorRT has refused; lost where CUDA says so, which TensorRT keeps to itself."""
    (status,) = cuda.cudaPeekAtLastError()
    if status.name in _STICKY:
        return DeviceError(f"{message} (CUDA: {status.name})", is_lost=True)
    return DeviceError(f"{message}; its log says why")


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """`DeviceError` for plain errors of TensorRT's bindings; `TypeError` is theirs where a constructor makes nothing."""
    try:
        yield
    except (DeviceError, ArtifactError):
        raise
    except (RuntimeError, MemoryError) as error:
        raise refused(f"TensorRT: {doing}: {error}") from error
    except TypeError as error:
        if "returned nullptr" not in str(error):
            raise
        raise refused(f"TensorRT: {doing}: {error}") from error


class CudaDevice:
    """One GPU by the CUDA runtime; calls make it current on the calling thread first."""

    def __init__(self, index: int) -> None:
        properties = checked(cuda.cudaGetDeviceProperties(index))
        name = properties.name
        self.index, self.name = index, name.decode() if isinstance(name, bytes) else str(name)
        self.sm = f"sm_{properties.major}{properties.minor}"
        self.total_bytes = int(properties.totalGlobalMem)
        version = checked(cuda.cudaDriverGetVersion())
        self.driver = f"{version // 1000}.{version % 1000 // 10}"

    def activate(self) -> None:
        """Make the device current on this thread."""
        checked(cuda.cudaSetDevice(self.index))

    def free_bytes(self) -> int:
        self.activate()
        free, _ = checked(cuda.cudaMemGetInfo())
        return int(free)

    def allocate(self, size: int) -> int:
        self.activate()
        return int(checked(cuda.cudaMalloc(size)))

    def free(self, address: int) -> None:
        self.activate()
        checked(cuda.cudaFree(address))

    def pin(self, size: int) -> HostBlock:
        self.activate()
        address = int(checked(cuda.cudaMallocHost(size)))
        return HostBlock(address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))

    def unpin(self, block: HostBlock) -> None:
        self.activate()
        checked(cuda.cudaFreeHost(block.address))

    def open_stream(self) -> int:
        self.activate()
        return int(checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)))

    def close_stream(self, stream: int) -> None:
        self.activate()
        checked(cuda.cudaStreamDestroy(stream))

    def upload(self, to: int, block: HostBlock, size: int, stream: int) -> None:
        self.activate()
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(cuda.cudaMemcpyAsync(to, block.address, size, kind, stream))

    def download(self, block: HostBlock, source: int, size: int, stream: int) -> None:
        self.activate()
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(cuda.cudaMemcpyAsync(block.address, source, size, kind, stream))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        self.activate()
        # Of this thread alone: other slots may allocate meanwhile.
        checked(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            work()
        except BaseException:
            # The stream must leave its capture; that this fails, too, says less than what is on its way.
            status, graph = cuda.cudaStreamEndCapture(stream)
            if status == cuda.cudaError_t.cudaSuccess:
                cuda.cudaGraphDestroy(graph)
            cuda.cudaGetLastError()
            raise
        graph = checked(cuda.cudaStreamEndCapture(stream))
        try:
            return int(checked(cuda.cudaGraphInstantiate(graph, 0)))
        finally:
            cuda.cudaGraphDestroy(graph)  # of no use to anybody, whatever its status

    def launch(self, graph: int, stream: int) -> None:
        self.activate()
        checked(cuda.cudaGraphLaunch(graph, stream))

    def close_graph(self, graph: int) -> None:
        self.activate()
        checked(cuda.cudaGraphExecDestroy(graph))

    def synchronize(self, stream: int) -> None:
        self.activate()
        checked(cuda.cudaStreamSynchronize(stream))


class TensorRtExecution:
    """An execution context with shapes set; see `device.Execution`."""

    def __init__(self, context: trt.IExecutionContext, scratch_bytes: int) -> None:
        self._context: trt.IExecutionContext | None = context
        self._scratch_bytes = scratch_bytes

    @translated("binding")
    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        context = self._open()
        context.set_device_memory(scratch, self._scratch_bytes)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise refused(f"TensorRT refuses the address of {name}")

    @translated("running")
    def enqueue(self, stream: int) -> None:
        if not self._open().execute_async_v3(stream):
            raise refused("TensorRT could not run the network")

    def close(self) -> None:
        self._context = None  # the object frees itself

    def _open(self) -> trt.IExecutionContext:
        if self._context is None:
            raise DeviceError("the execution context is closed")
        return self._context


class TensorRtProgram:
    """A deserialized engine; see `device.Program`."""

    def __init__(self, engine: trt.ICudaEngine, device: CudaDevice, weight_bytes: int) -> None:
        self._engine: trt.ICudaEngine | None = engine
        self._device, self.weight_bytes = device, weight_bytes

    @translated("asking for its scratch memory")
    def scratch_bytes(self, profile: int) -> int:
        return self._open().get_device_memory_size_for_profile_v2(profile)

    @translated("opening a context")
    def open(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> TensorRtExecution:
        self._device.activate()
        context = self._open().create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise refused(f"TensorRT opens no context for profile {profile}")
        self._device.synchronize(stream)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise refused(f"TensorRT refuses the shape {shape} of {name} in profile {profile}")
        if missing := context.infer_shapes():
            raise DeviceError(f"TensorRT lacks the shapes of {', '.join(missing)}")
        return TensorRtExecution(context, self.scratch_bytes(profile))

    def close(self) -> None:
        self._engine = None

    def _open(self) -> trt.ICudaEngine:
        if self._engine is None:
            raise DeviceError("the program is closed")
        return self._engine


class NvidiaRuntime:
    """TensorRT and every visible GPU, with our plugins registered.

    Raises `NoRuntime` saying what is absent: TensorRT itself, a driver, a GPU, or the plugin library.
    """

    def __init__(self) -> None:
        if not hasattr(trt, "Runtime"):
            raise NoRuntime("tensorrt: expected NVIDIA's package, found type stubs alone; see docs/tensorrt.md")
        try:
            count = int(checked(cuda.cudaGetDeviceCount()))
        except DeviceError as error:
            raise NoRuntime(f"device: expected an NVIDIA GPU, found none ({error})") from error
        self.devices: tuple[Device, ...] = tuple(CudaDevice(index) for index in range(count))
        self._logger = trt.Logger(trt.Logger.WARNING)
        try:
            plugin = find_plugin()
            register(plugin, trt.get_plugin_registry(), trt.__version__)
        except PluginError as error:
            raise NoRuntime(str(error)) from error
        with translated("starting"):
            self._runtime = trt.Runtime(self._logger)
        self.libraries = {"tensorrt": trt.__version__, "plugin": plugin.sha256}

    @translated("building")
    def build(self, request: BuildRequest) -> bytes:
        """A strongly typed, refittable engine with a profile per kind of work."""
        builder = trt.Builder(self._logger)
        network = builder.create_network(_flags())
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(request.graph)):
            words = "; ".join(str(parser.get_error(at)) for at in range(parser.num_errors))
            raise ArtifactError(f"{request.graph.name}: TensorRT's parser refuses it: {words}")
        config = builder.create_builder_config()
        config.set_flag(trt.BuilderFlag.REFIT)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        _use_timings(config, request.timing_cache)
        for profile in request.work.profiles:
            made = builder.create_optimization_profile()
            least, best, most = (request.shapes(sizes) for sizes in (profile.least, profile.best, profile.most))
            for name in least:
                made.set_shape(name, trt.Dims(least[name]), trt.Dims(best[name]), trt.Dims(most[name]))
            if config.add_optimization_profile(made) < 0:
                raise ArtifactError(f"{request.graph.name}: TensorRT refuses the profile {profile}")
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ArtifactError(f"{request.graph.name}: TensorRT builds no engine; its log says why")
        _keep_timings(config, request.timing_cache)
        return bytes(plan)

    @translated("refitting")
    def refit(self, built: bytes, graph: Path) -> bytes:
        """The engine of `built` with the weights of the typed graph in a file."""
        engine = self._deserialized(built, graph.name)
        refitter = trt.Refitter(engine, self._logger)
        parser = trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(graph)):
            words = "; ".join(str(parser.get_error(at)) for at in range(parser.num_errors))
            raise ArtifactError(f"{graph.name}: TensorRT cannot refit its engine: {words}")
        if not refitter.refit_cuda_engine():
            raise ArtifactError(f"{graph.name}: refitting lacks the weights {', '.join(refitter.get_missing_weights())}")
        serialized = engine.create_serialization_config()
        serialized.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
        plan = engine.serialize_with_config(serialized)
        if plan is None:
            raise ArtifactError(f"{graph.name}: TensorRT cannot write its refitted engine")
        return bytes(plan)

    @translated("loading")
    def load(self, device: Device, plan: Path) -> TensorRtProgram:
        """The engine in a file, on a device."""
        assert isinstance(device, CudaDevice)
        device.activate()
        data = plan.read_bytes()
        return TensorRtProgram(self._deserialized(data, plan.name), device, len(data))

    def _deserialized(self, plan: bytes, name: str) -> trt.ICudaEngine:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(f"{name}: TensorRT {trt.__version__} cannot read the engine; compile it again on this machine")
        return engine


def _use_timings(config: trt.IBuilderConfig, file: Path) -> None:
    """Timings of earlier builds; none where there are none that fit this TensorRT and GPU, whatever the file holds."""
    try:
        known = file.read_bytes()
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
        _LOG.warning("%s: TensorRT does not take these timings; all kernels are timed anew", file)
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, TypeError) as error:
        _LOG.warning("%s: cannot be used: %s; all kernels are timed anew", file, error)
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, ignore_mismatch=False)


def _keep_timings(config: trt.IBuilderConfig, file: Path) -> None:
    """Keep the timings for later builds, which must not cost this one."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if (cache := config.get_timing_cache()) is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(bytes(cache.serialize()))
        aside.replace(file)
    except (OSError, RuntimeError, TypeError) as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        _LOG.warning("%s: timings of kernels are not kept: %s", file, error)


def _flags() -> int:
    """Strongly typed; TensorRT 11 has no other kind of network and no flag for it."""
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strong is None else 1 << int(strong)
