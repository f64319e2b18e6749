"""A session of the TensorRT engine: one stream, page-locked staging, and a context with a CUDA graph per work bucket.

A run lays the batch into the staging block of its bucket, launches the bucket's graph (one upload, the network, one download)
and waits for the stream with the interpreter lock released. Nothing is allocated while a session runs: blocks are as large
as the largest bucket needs and shared by all buckets, as is the scratch memory, because a session runs one batch at a time.
Copies overlap with compute across sessions: with two slots on a GPU one batch is on its way while another is computed.

Every bucket keeps what it runs with; the engine's work plan says how many there are. `prepare` may run beside `run`: contexts
are opened outside the lock, on a stream of their own, and only their first run and the capture keep a batch waiting. Where no
CUDA graph can be captured a bucket's network is enqueued anew each time: slower, and as right.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from model.signature import ENCODE_USER, GraphSignature
from serving.engines.base import DeviceError, Tensors
from serving.engines.tensorrt.device import Device, Execution, HostBlock, Program, give_back
from serving.engines.tensorrt.staging import Layout, batch_sizes, jagged_sizes, lay, lay_jagged
from serving.engines.tensorrt.work import GraphWork, shape_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelForm:
    """How batches meet the built graphs: what the scheduler stacks (`padded`), what the engine runs (`built`), and its work.

    `is_jagged`: `encode_user` is built for jagged rows; `events`: event types, whose histories then lose their padding.
    """

    padded: Mapping[str, GraphSignature]
    built: Mapping[str, GraphSignature]
    work: Mapping[str, GraphWork]
    events: tuple[str, ...] = ()
    is_jagged: bool = False


_Key = tuple[str, tuple[int, ...]]


@dataclass
class _Lane:
    """What one bucket runs with."""

    execution: Execution
    inputs: Layout
    outputs: Layout
    given: dict[str, NDArray[Any]]
    made: dict[str, NDArray[Any]]
    graph: int | None = None


class TensorRtSession:
    """One execution context of both graphs on one device; raises `DeviceError`, and `OutsideWork` for too large a batch.

    `uses_graphs`: whether CUDA graphs are launched; without them every run enqueues the network anew (for comparisons).
    """

    fault = ""

    def __init__(self, device: Device, programs: Mapping[str, Program], form: ModelForm, *, uses_graphs: bool = True) -> None:
        self.device, self._programs, self._form = device, programs, form
        self._uses_graphs, self._has_warned, self._is_closed = uses_graphs, False, False
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._lanes: dict[_Key, _Lane] = {}
        self._streams: list[int] = []
        self._held: list[Callable[[], None]] = []  # what gives back memory and streams, in the order of taking them
        given, made, scratch = session_bytes(programs, form)
        try:
            self._stream, self._side = self._open_stream(), self._open_stream()
            self._given, self._made = (self._pin(size) for size in (given, made))
            self._inputs, self._outputs, self._scratch = (self._allocate(size) for size in (given, made, scratch))
        except DeviceError:
            self.close()
            raise

    def prepare(self, graph: str, inputs: Tensors) -> None:
        """Open the context and capture the CUDA graph of the bucket that holds these shapes."""
        self._make(graph, self._bucket(graph, inputs))

    def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Run `graph`; outputs have the rows of the batch and are the caller's to keep."""
        bucket = self._bucket(graph, inputs)
        self._make(graph, bucket)
        with self._lock:
            self._check_open()
            return self._run(self._lanes[_key(graph, bucket)], graph, inputs)

    def _run(self, lane: _Lane, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        self._lay(graph, inputs, lane)
        if lane.graph is not None:
            self.device.launch(lane.graph, self._stream)
        else:
            self._enqueue(lane)
        self.device.synchronize(self._stream)
        sizes = self._batch_rows(graph, inputs)
        built = self._form.built[graph].outputs
        return {spec.name: lane.made[spec.name][: sizes[str(spec.shape[0])]].copy() for spec in built}

    def close(self) -> None:
        """Give back everything that the session holds on its device, once the bucket that is being prepared is there.

        Raises nothing on a device that is lost, and does nothing a second time.
        """
        with self._opening, self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            ended = [partial(self.device.synchronize, stream) for stream in self._streams]  # of what a failed batch has left
            lanes = [release for lane in self._lanes.values() for release in self._releases(lane)]
            give_back(f"a session on {self.device.name}", [*ended, *lanes, *reversed(self._held)])
            self._lanes.clear()
            self._held.clear()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the session is closed")

    def _open_stream(self) -> int:
        stream = self.device.open_stream()
        self._streams.append(stream)
        self._held.append(partial(self.device.close_stream, stream))
        return stream

    def _pin(self, size: int) -> HostBlock:
        block = self.device.pin(size)
        self._held.append(partial(self.device.unpin, block))
        return block

    def _allocate(self, size: int) -> int:
        address = self.device.allocate(size)
        self._held.append(partial(self.device.free, address))
        return address

    def _is_jagged(self, graph: str) -> bool:
        return graph == ENCODE_USER and self._form.is_jagged

    def _batch_rows(self, graph: str, inputs: Tensors) -> dict[str, int]:
        return batch_sizes(self._form.padded[graph], inputs)

    def _bucket(self, graph: str, inputs: Tensors) -> dict[str, int]:
        if self._is_jagged(graph):
            sizes = jagged_sizes(self._form.padded[graph], inputs, self._form.events)
        else:
            sizes = self._batch_rows(graph, inputs)
        return self._form.work[graph].fit(sizes)

    def _lay(self, graph: str, inputs: Tensors, lane: _Lane) -> None:
        if self._is_jagged(graph):
            lay_jagged(inputs, lane.given, self._form.events)
        else:
            lay(inputs, lane.given)

    def _make(self, graph: str, bucket: dict[str, int]) -> None:
        """What a bucket runs with, unless it is there. Its context runs once uncaptured: TensorRT sets itself up then."""
        key = _key(graph, bucket)
        if key in self._lanes:  # without waiting for another bucket's
            return
        with self._opening:
            self._check_open()
            if key in self._lanes:
                return
            signature, work = self._form.built[graph], self._form.work[graph]
            shapes = {spec.name: shape_of(spec, bucket) for spec in signature.inputs}
            execution = self._programs[graph].open(work.profile(bucket), shapes, self._side)
            inputs, outputs = Layout.of(signature.inputs, bucket), Layout.of(signature.outputs, bucket)
            lane = _Lane(execution, inputs, outputs, inputs.views(self._given), outputs.views(self._made))
            with self._lock:
                try:
                    self._set_up(lane)
                except DeviceError:
                    give_back(f"a context on {self.device.name}", self._releases(lane))
                    raise
                self._lanes[key] = lane

    def _set_up(self, lane: _Lane) -> None:
        addresses = lane.inputs.addresses(self._inputs) | lane.outputs.addresses(self._outputs)
        lane.execution.bind(addresses, self._scratch)
        for view in lane.given.values():
            view[...] = 0
        self._enqueue(lane)
        self.device.synchronize(self._stream)
        if self._uses_graphs:
            lane.graph = self._captured(lane)

    def _captured(self, lane: _Lane) -> int | None:
        """The CUDA graph of a bucket; None where the device makes none."""
        try:
            return self.device.capture(self._stream, partial(self._enqueue, lane))
        except DeviceError as error:
            if error.is_lost:
                raise
            if not self._has_warned:
                _LOG.warning("%s captures no CUDA graph: %s; batches enqueue the network anew", self.device.name, error)
            self._has_warned = True
            return None

    def _enqueue(self, lane: _Lane) -> None:
        self.device.upload(self._inputs, self._given, lane.inputs.size, self._stream)
        lane.execution.enqueue(self._stream)
        self.device.download(self._made, self._outputs, lane.outputs.size, self._stream)

    def _releases(self, lane: _Lane) -> Iterator[Callable[[], None]]:
        if lane.graph is not None:
            yield partial(self.device.close_graph, lane.graph)
        yield lane.execution.close


def _key(graph: str, bucket: Mapping[str, int]) -> _Key:
    return graph, tuple(bucket.values())


def session_bytes(programs: Mapping[str, Program], form: ModelForm) -> tuple[int, int, int]:
    """Bytes that a session needs for inputs, outputs (on host and device alike) and scratch (device): its largest bucket's."""
    given = made = scratch = 0
    for graph, signature in form.built.items():
        work = form.work[graph]
        for bucket in work.buckets:
            given = max(given, Layout.of(signature.inputs, bucket).size)
            made = max(made, Layout.of(signature.outputs, bucket).size)
        scratch = max(scratch, *(programs[graph].scratch_bytes(profile) for profile in range(len(work.profiles))))
    return given, made, max(scratch, 1)
