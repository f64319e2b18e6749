"""A session of the TensorRT engine: one stream, page-locked staging, and a context with a CUDA graph per work bucket.

A run lays the batch into the staging block of its bucket, launches the bucket's graph (one upload, the network, one download)
and waits for the stream with the interpreter lock released. Nothing is allocated while a session runs: blocks are as large
as the largest bucket needs and shared by all buckets, as is the scratch memory, because a session runs one batch at a time.
Copies overlap with compute across sessions: with two slots on a GPU one batch is on its way while another is computed.

Buckets used longest ago give up their graph beyond `max_lanes`. `prepare` may run beside `run`: contexts are opened outside the
lock, on a stream of their own, and only their first run and the capture keep a batch waiting.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from model.signature import ENCODE_USER, GraphSignature
from serving.engines.base import Tensors
from serving.engines.tensorrt.device import Device, DeviceError, Execution, HostBlock, Program
from serving.engines.tensorrt.staging import Layout, batch_sizes, jagged_sizes, lay, lay_jagged
from serving.engines.tensorrt.work import GraphWork, shape_of

MAX_LANES = 256
"""Contexts and CUDA graphs that one session keeps: more than the buckets of default options."""


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

    def __init__(
        self,
        device: Device,
        programs: Mapping[str, Program],
        form: ModelForm,
        *,
        max_lanes: int = MAX_LANES,
        uses_graphs: bool = True,
    ) -> None:
        self.device, self._programs, self._form = device, programs, form
        self._max_lanes, self._uses_graphs = max_lanes, uses_graphs
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._lanes: OrderedDict[_Key, _Lane] = OrderedDict()
        self._stream, self._side = device.open_stream(), device.open_stream()
        given, made, scratch = session_bytes(programs, form)
        self._blocks: list[HostBlock] = []
        self._memory: list[int] = []
        try:
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
        while True:
            with self._lock:
                if (lane := self._lanes.get(_key(graph, bucket))) is not None:
                    self._lanes.move_to_end(_key(graph, bucket))
                    return self._run(lane, graph, inputs)
            self._make(graph, bucket)

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
        """Free everything that the session holds on its device, once the bucket that is being prepared is there."""
        with self._opening, self._lock:
            while self._lanes:
                self._close(self._lanes.popitem()[1])
            for address in self._memory:
                self.device.free(address)
            for block in self._blocks:
                self.device.unpin(block)
            self._memory, self._blocks = [], []
            self.device.close_stream(self._stream)
            self.device.close_stream(self._side)

    def _pin(self, size: int) -> HostBlock:
        block = self.device.pin(size)
        self._blocks.append(block)
        return block

    def _allocate(self, size: int) -> int:
        address = self.device.allocate(size)
        self._memory.append(address)
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
        with self._opening:
            with self._lock:
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
                    execution.close()
                    raise
                self._lanes[key] = lane
                if len(self._lanes) > self._max_lanes:
                    self._close(self._lanes.popitem(last=False)[1])

    def _set_up(self, lane: _Lane) -> None:
        addresses = lane.inputs.addresses(self._inputs) | lane.outputs.addresses(self._outputs)
        lane.execution.bind(addresses, self._scratch)
        for view in lane.given.values():
            view[...] = 0
        self._enqueue(lane)
        self.device.synchronize(self._stream)
        if self._uses_graphs:
            lane.graph = self.device.capture(self._stream, lambda: self._enqueue(lane))

    def _enqueue(self, lane: _Lane) -> None:
        self.device.upload(self._inputs, self._given, lane.inputs.size, self._stream)
        lane.execution.enqueue(self._stream)
        self.device.download(self._made, self._outputs, lane.outputs.size, self._stream)

    def _close(self, lane: _Lane) -> None:
        if lane.graph is not None:
            self.device.close_graph(lane.graph)
        lane.execution.close()


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
