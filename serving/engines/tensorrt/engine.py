"""The TensorRT engine: both graphs on every GPU, and sessions dealt out to the GPUs in turn.

Weights are loaded once per GPU; a session adds its staging, its scratch and a CUDA graph per bucket. What that comes to is
known before anything is allocated, and an engine that would not fit is refused.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.artifact import Artifact, ArtifactError
from model.signature import encode_user_signature, score_candidates_signature
from serving.engines.cache import GRAPHS
from serving.engines.tensorrt.device import Device, Program, Runtime, give_back
from serving.engines.tensorrt.session import ModelForm, TensorRtSession, session_bytes
from serving.engines.tensorrt.work import WorkPlan, signatures

TARGET = "tensorrt"
SLOTS_PER_GPU = 2
"""So that copies of one batch overlap with the compute of another."""

MEMORY_SHARE = 0.9
"""Of a GPU's memory that weights and sessions may take: CUDA graphs, contexts and the driver need some, too."""


def plan_file(graph: str) -> str:
    """Name of a built graph in an engine's directory."""
    return f"{graph}.plan"


def model_form(artifact: Artifact, work: WorkPlan) -> ModelForm:
    """How batches of an artifact meet its built graphs."""
    schema, config = artifact.schema, artifact.config
    padded = (encode_user_signature(schema, config), score_candidates_signature(schema, config))
    return ModelForm(
        padded={signature.name: signature for signature in padded},
        built=signatures(schema, config, jagged=work.is_jagged),
        work={graph: work.of(graph) for graph in GRAPHS},
        events=tuple(event.name for event in schema.events),
        is_jagged=work.is_jagged,
    )


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that an engine takes of one GPU: weights once, and staging and scratch of every session."""

    weights: int
    session: int
    sessions: int

    @property
    def total(self) -> int:
        return self.weights + self.session * self.sessions


class TensorRtEngine:
    """Built graphs of one artifact, loaded on every device of `runtime` that gets a session.

    `slots`: sessions that will be opened, at most. `device_peak_flops` of a session is its share of its device's.
    Raises `ArtifactError` where they do not fit in memory, `DeviceError` where the device fails.
    """

    name = TARGET

    def __init__(
        self,
        directory: Path,
        runtime: Runtime,
        form: ModelForm,
        *,
        precision: str,
        device_peak_flops: float,
        slots: int = SLOTS_PER_GPU,
        uses_graphs: bool = True,
    ) -> None:
        self.entry, self.precision = directory, precision
        self._form, self._uses_graphs = form, uses_graphs
        self._devices = runtime.devices[:slots]
        self._lock = threading.Lock()
        self._next = itertools.cycle(self._devices)
        self._sessions: list[TensorRtSession] = []
        per_device = -(-slots // len(self._devices))
        self.device_peak_flops = device_peak_flops / per_device
        self._programs: dict[int, Mapping[str, Program]] = {}
        for device in self._devices:
            self._programs[device.index] = {g: runtime.load(device, directory / plan_file(g)) for g in GRAPHS}
            memory = self.memory(device, per_device)
            if memory.total > MEMORY_SHARE * device.total_bytes:
                self.close()
                raise ArtifactError(
                    f"device memory: expected at most {MEMORY_SHARE:.0%} of {device.total_bytes >> 20} MiB on {device.name}, "
                    f"found {memory.weights >> 20} MiB of weights and {memory.sessions} session(s) of {memory.session >> 20} "
                    "MiB; serve with fewer slots or compile for smaller batches"
                )

    def memory(self, device: Device, sessions: int) -> DeviceMemory:
        """What the engine takes of a device."""
        programs = self._programs[device.index]
        return DeviceMemory(sum(p.weight_bytes for p in programs.values()), sum(session_bytes(programs, self._form)), sessions)

    @property
    def devices(self) -> Sequence[Device]:
        """Devices with sessions."""
        return self._devices

    def open_session(self) -> TensorRtSession:
        """A session on the next device."""
        with self._lock:
            if not self._programs:
                raise RuntimeError("the engine is closed")
            device = next(self._next)
            session = TensorRtSession(device, self._programs[device.index], self._form, uses_graphs=self._uses_graphs)
            self._sessions.append(session)
            return session

    def close(self) -> None:
        """Free all sessions and the weights, on devices that are not lost."""
        with self._lock:
            for session in self._sessions:
                session.close()
            give_back("the weights", [program.close for programs in self._programs.values() for program in programs.values()])
            self._sessions, self._programs = [], {}
