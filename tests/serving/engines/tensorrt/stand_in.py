"""A GPU and TensorRT played by this process, strict about the rules that the real ones only punish sometimes.

Memory is real bytes behind made-up addresses; streams are queues that nothing leaves before `synchronize`; graphs are
recordings of them; built engines are archives of the typed graph, run by ONNX Runtime (f32, f16) or OpenVINO (bf16). Broken
rules raise `RuleBroken`: a shape outside its profile, memory that was never allocated, is freed or too small, capturing what
has not run once, freeing what a stream still needs, using what is closed. A download leaves poison on the host until the
stream is synchronized, so whoever reads early, or writes into staging too early, computes nonsense.
"""

from __future__ import annotations

import io
import itertools
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, inliner

from serving.engines.base import DeviceError
from serving.engines.tensorrt.device import ALIGNMENT, BuildRequest, Device, HostBlock

POISON = 0xEE
FIRST_ADDRESS = 0x7F00_0000_0000
Operation = Callable[[], None]


class RuleBroken(AssertionError):
    """The engine did what a GPU would not forgive."""


@dataclass(frozen=True)
class _Queued:
    operation: Operation
    written: HostBlock | None = None


class StandInDevice:
    """One made-up GPU of `total_bytes`.

    `fail(error)` makes the next launch or enqueue fail as a device does, and after an error that loses the device every call;
    `capture_error`: what captures fail with.
    """

    def __init__(self, index: int = 0, total_bytes: int = 1 << 30) -> None:
        self.index, self.name, self.sm, self.driver = index, "Stand-in", "sm_90", "13.0"
        self.total_bytes = total_bytes
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, HostBlock] = {}
        self.streams: dict[int, list[_Queued]] = {}
        self.graphs: dict[int, list[_Queued]] = {}
        self.weights = 0
        self.launches, self.captures, self.enqueues, self.peak_bytes = 0, 0, 0, 0
        self._handles = itertools.count(1)
        self._next = FIRST_ADDRESS
        self._recording: list[_Queued] | None = None
        self._failure: DeviceError | None = None
        self.capture_error: DeviceError | None = None

    def fail(self, error: DeviceError) -> None:
        self._failure = error

    def free_bytes(self) -> int:
        self._maybe_lost()
        return self.total_bytes - self.weights - sum(map(len, self.memory.values()))

    def allocate(self, size: int) -> int:
        self._maybe_lost()
        if size > self.free_bytes():
            raise DeviceError("CUDA: cudaErrorMemoryAllocation: out of memory")
        address, self._next = self._next, self._next + -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        self.memory[address] = np.full(size, POISON, np.uint8)
        self.peak_bytes = max(self.peak_bytes, sum(map(len, self.memory.values())))
        return address

    def free(self, address: int) -> None:
        self._maybe_lost()
        self._check(address in self.memory, f"free of {address:#x}, which is not allocated")
        self._check(not any(self.streams.values()), "free while a stream has work that may use it")
        del self.memory[address]

    def pin(self, size: int) -> HostBlock:
        self._maybe_lost()
        block = HostBlock(next(self._handles), np.full(size, POISON, np.uint8))
        self.pinned[block.address] = block
        return block

    def unpin(self, block: HostBlock) -> None:
        self._maybe_lost()
        self._check(not any(self.streams.values()), "unpinned while a stream has work that may use it")
        del self.pinned[block.address]

    def open_stream(self) -> int:
        self._maybe_lost()
        stream = next(self._handles)
        self.streams[stream] = []
        return stream

    def close_stream(self, stream: int) -> None:
        self._maybe_lost()
        self._check(not self.streams.pop(stream), "closed a stream with work on it")

    def upload(self, to: int, block: HostBlock, size: int, stream: int) -> None:
        self._check(block.address in self.pinned, "upload from memory that is not page-locked")

        def copy() -> None:
            self.bytes_at(to, size)[:] = block.array[:size]

        self.put(copy, stream)

    def download(self, block: HostBlock, source: int, size: int, stream: int) -> None:
        self._check(block.address in self.pinned, "download to memory that is not page-locked")

        def copy() -> None:
            block.array[:size] = self.bytes_at(source, size)

        self.put(copy, stream, written=block)

    def capture(self, stream: int, work: Operation) -> int:
        self._check(self._recording is None, "capture inside capture")
        self._check(not self.streams[stream], "capture of a stream that still has work")
        if self.capture_error is not None:
            raise self.capture_error
        self._recording = []
        try:
            work()
            handle = next(self._handles)
            self.graphs[handle] = self._recording
        finally:
            self._recording = None
        self.captures += 1
        return handle

    def launch(self, graph: int, stream: int) -> None:
        self._check(graph in self.graphs, "launch of a graph that is closed")
        self._maybe_fail()
        self.launches += 1
        self._enqueue(self.graphs[graph], stream)

    def close_graph(self, graph: int) -> None:
        self._maybe_lost()
        del self.graphs[graph]

    def synchronize(self, stream: int) -> None:
        self._maybe_lost()
        self._check(self._recording is None, "synchronized inside capture")
        queue, self.streams[stream] = self.streams[stream], []
        for queued in queue:
            queued.operation()

    def put(self, operation: Operation, stream: int, written: HostBlock | None = None) -> None:
        """`written`: host memory that is not to be read before the stream has been synchronized."""
        queued = _Queued(operation, written)
        if self._recording is not None:
            self._recording.append(queued)
        else:
            self._enqueue([queued], stream)

    def _enqueue(self, queued: list[_Queued], stream: int) -> None:
        for entry in queued:
            if entry.written is not None:
                entry.written.array[:] = POISON
        self.streams[stream] += queued

    def enqueued(self, has_run: bool) -> None:
        self._check(has_run or self._recording is None, "captured before it has run once")
        self._maybe_fail()
        self.enqueues += self._recording is None

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        for start, block in self.memory.items():
            if start <= address < start + len(block):
                self._check(address + size <= start + len(block), f"{size} bytes at {address:#x} leave their allocation")
                return block[address - start : address - start + size]
        raise RuleBroken(f"{address:#x} is not allocated")

    def _maybe_lost(self) -> None:
        if self._failure is not None and self._failure.is_lost:
            raise self._failure

    def _maybe_fail(self) -> None:
        if self._failure is not None:
            failure = self._failure
            self._failure = failure if failure.is_lost else None
            raise failure

    @staticmethod
    def _check(holds: bool, what: str) -> None:
        if not holds:
            raise RuleBroken(what)


class StandInExecution:
    def __init__(self, program: StandInProgram, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._program, self._profile, self._shapes = program, profile, dict(shapes)
        self._addresses: dict[str, int] | None = None
        self._scratch, self._has_run, self._is_closed = 0, False, False

    def bind(self, addresses: Mapping[str, int], scratch: int) -> None:
        expected = set(self._program.inputs) | set(self._program.outputs)
        if set(addresses) != expected or any(address % ALIGNMENT for address in addresses.values()):
            raise RuleBroken(f"expected aligned addresses of {sorted(expected)}, found {addresses}")
        self._program.device.bytes_at(scratch, self._program.scratch_bytes(self._profile))
        self._addresses, self._scratch = dict(addresses), scratch

    def enqueue(self, stream: int) -> None:
        if self._is_closed or self._addresses is None:
            raise RuleBroken("enqueued without addresses, or closed")
        self._program.device.enqueued(self._has_run)
        self._has_run = True
        self._program.device.put(self._run, stream)

    def close(self) -> None:
        self._is_closed = True

    def _run(self) -> None:
        program, addresses = self._program, self._addresses
        assert addresses is not None
        if program.is_closed or self._is_closed:
            raise RuleBroken("ran what is closed")
        device = program.device
        device.bytes_at(self._scratch, program.scratch_bytes(self._profile))[:] = POISON  # shared: nothing may live in it
        inputs = {}
        for name, shape in self._shapes.items():
            dtype = program.inputs[name]
            size = int(np.prod(shape)) * dtype.itemsize
            inputs[name] = device.bytes_at(addresses[name], size).view(dtype).reshape(shape).copy()
        for name, array in program.run(inputs).items():
            flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            device.bytes_at(addresses[name], flat.size)[:] = flat


class StandInProgram:
    """A typed graph with its profiles."""

    def __init__(self, device: StandInDevice, archive: Path) -> None:
        self.device, self.is_closed = device, False
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as files:
            files.extractall(folder)
            self._profiles = json.loads((Path(folder) / "profiles.json").read_text())
            graph = next(Path(folder).glob("*.onnx"))
            model = onnx.load(graph)
            self.weight_bytes = archive.stat().st_size
            types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
            self.inputs = {name: np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for name, kind in types.items()}
            self.outputs = [v.name for v in model.graph.output]
            self._run = runner(model, Path(folder))
        device.weights += self.weight_bytes

    def scratch_bytes(self, profile: int) -> int:
        return 1024 * (profile + 1)

    def open(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> StandInExecution:
        if self.is_closed:
            raise RuleBroken("opened a context of a closed program")
        least, _, most = self._profiles[profile]
        for name, shape in shapes.items():
            inside = all(a <= n <= b for a, n, b in zip(least[name], shape, most[name], strict=True))
            if not inside or stream not in self.device.streams:
                raise RuleBroken(f"profile {profile} holds {least[name]} … {most[name]} of {name}, found {shape}")
        return StandInExecution(self, profile, shapes)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._run(inputs)

    def close(self) -> None:
        self.device.weights -= 0 if self.is_closed else self.weight_bytes
        self.is_closed = True


class StandInRuntime:
    """`count` made-up GPUs. Builds are counted, so that tests see what was built and what refitted."""

    def __init__(self, count: int = 1, total_bytes: int = 1 << 30) -> None:
        self.libraries = {"tensorrt": "10.99.0", "plugin": "stand-in"}
        self.gpus = tuple(StandInDevice(index, total_bytes) for index in range(count))
        self.devices: tuple[Device, ...] = self.gpus
        self.built: list[str] = []
        self.refitted: list[str] = []
        self.loaded: list[str] = []

    def build(self, request: BuildRequest) -> bytes:
        profiles = [[request.shapes(sizes) for sizes in (p.least, p.best, p.most)] for p in request.work.profiles]
        known = json.loads(request.timing_cache.read_text()) if request.timing_cache.is_file() else []
        request.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        request.timing_cache.write_text(json.dumps([*known, request.graph.stem]))
        self.built.append(request.graph.stem)
        return archive(request.graph, profiles)

    def refit(self, plan: bytes, graph: Path) -> bytes:
        with zipfile.ZipFile(io.BytesIO(plan)) as files:
            profiles = json.loads(files.read("profiles.json"))
        self.refitted.append(graph.stem)
        return archive(graph, profiles)

    def load(self, device: Device, plan: Path) -> StandInProgram:
        assert isinstance(device, StandInDevice)
        self.loaded.append(plan.stem)
        return StandInProgram(device, plan)


def archive(graph: Path, profiles: list[Any]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as files:
        files.writestr("profiles.json", json.dumps(profiles))
        for file in (graph, graph.with_suffix(".weights")):
            if file.is_file():
                files.write(file, file.name)
    return out.getvalue()


def runner(model: onnx.ModelProto, folder: Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Runs a typed graph on the engine that knows its types."""
    file = folder / "inlined.onnx"
    names = [v.name for v in model.graph.output]
    if not any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        onnx.save(model, file)
        session = onnxruntime.InferenceSession(file)
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
    onnx.save(inliner.inline_local_functions(model), file)
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return lambda inputs: {name: np.array(array) for name, array in zip(names, compiled(inputs).to_tuple(), strict=True)}
