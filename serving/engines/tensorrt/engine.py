"""The TensorRT engine: both graphs on every GPU, and sessions dealt out to the GPUs in turn.

Weights are loaded once per GPU; a session adds its staging, its scratch and, as shapes get warm, a context and a CUDA graph per
bucket. Before weights are loaded they are held against the memory that the GPU has free, by the size of their plans, and after
that staging and scratch of all sessions. What contexts and CUDA graphs take is not known beforehand: a share is left to them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
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

RESERVED_SHARE = 0.1
"""Of a GPU's memory that weights, staging and scratch leave to contexts, CUDA graphs and the driver."""


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
    """Bytes that an engine allocates on one GPU: weights once, and staging and scratch of every session."""

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
        try:
            for device in self._devices:
                plans = {graph: directory / plan_file(graph) for graph in GRAPHS}
                _check_fits(device, sum(plan.stat().st_size for plan in plans.values()), "weights")
                loaded = self._programs[device.index] = dict[str, Program]()
                for graph, plan in plans.items():
                    loaded[graph] = runtime.load(device, plan)
                each = self.memory(device, per_device).session
                _check_fits(device, each * per_device, f"staging and scratch of {per_device} session(s)")
        except BaseException:
            self.close()
            raise

    def memory(self, device: Device, sessions: int) -> DeviceMemory:
        """What the engine takes of a device, contexts and CUDA graphs left out."""
        programs = self._programs[device.index]
        return DeviceMemory(sum(p.weight_bytes for p in programs.values()), sum(session_bytes(programs, self._form)), sessions)

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


def _check_fits(device: Device, needed: int, what: str) -> None:
    """Raises `ArtifactError` where a device has not so many bytes free beyond what is reserved."""
    reserved = RESERVED_SHARE * device.total_bytes
    if needed > (free := device.free_bytes()) - reserved:
        raise ArtifactError(
            f"device memory: expected at most {max(0, free - reserved) / 2**20:.1f} MiB, what {device.name} has free but for "
            f"{RESERVED_SHARE:.0%} of its {device.total_bytes >> 20} MiB, found {needed / 2**20:.1f} MiB of {what}; serve with "
            "fewer slots, compile for smaller batches, or end what else uses the GPU"
        )
