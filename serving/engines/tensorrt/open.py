"""Opens built engines from the engine cache; fails closed. Nothing is built here, and no ONNX is read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import cast, get_args

from model.artifact import Artifact, ArtifactError
from serving.engines import cache as engine_cache
from serving.engines.cache import EngineIdentity, Precision
from serving.engines.tensorrt.device import Device, Runtime
from serving.engines.tensorrt.engine import SLOTS_PER_GPU, TARGET, TensorRtEngine, model_form
from serving.engines.tensorrt.work import WorkPlan


class NoRuntime(ArtifactError):
    """This machine cannot run TensorRT engines; the message says what it lacks."""


@functools.cache
def nvidia_runtime() -> Runtime:
    """TensorRT and the GPUs of this machine, opened once. Raises `NoRuntime`."""
    try:
        from serving.engines.tensorrt.nvidia import NvidiaRuntime
    except ImportError as error:
        raise NoRuntime(f"tensorrt: expected NVIDIA's packages, found {error}; see docs/tensorrt.md") from error
    return NvidiaRuntime()


def gpu_slots() -> int:
    """Engine slots that fill this machine's GPUs. Raises `NoRuntime`."""
    return SLOTS_PER_GPU * len(nvidia_runtime().devices)


def resolve_precision(precision: str) -> Precision:
    """`auto` is bf16, which every supported GPU multiplies. Raises `ArtifactError`."""
    if precision not in ("auto", *get_args(Precision)):
        raise ArtifactError(f"precision: expected auto, {', '.join(get_args(Precision))}, found {precision!r}")
    return cast(Precision, "bf16" if precision == "auto" else precision)


def identity(artifact: Artifact, runtime: Runtime, work: WorkPlan, precision: str) -> EngineIdentity:
    """What an engine built on this machine depends on: artifact, GPU, TensorRT, plugin, work and precision."""
    return EngineIdentity(
        artifact_digest=artifact.digest,
        target=TARGET,
        device=_kind(runtime.devices[0]),
        libraries={**runtime.libraries, "work": work.digest[:16]},
        precision=resolve_precision(precision),
        threads=1,
    )


def _kind(device: Device) -> str:
    """GPUs of one compute capability differ in memory and speed, and with them the engines that are built for them."""
    return f"{device.name} {device.sm}"


def open_built(
    artifact: Artifact, runtime: Runtime, work: WorkPlan, *, cache: Path, precision: str, slots: int
) -> TensorRtEngine:
    """The cached engine of `artifact` for this machine and work; fails closed with an `ArtifactError`."""
    wanted = identity(artifact, runtime, work, precision)
    entry, manifest = engine_cache.load(cache, artifact, wanted)
    first, *others = (_kind(device) for device in runtime.devices)
    if unlike := sorted(set(others) - {first}):
        raise ArtifactError(
            f"devices: expected GPUs of one kind ({first}), found {', '.join(unlike)} as well; make only one kind visible "
            "(CUDA_VISIBLE_DEVICES)"
        )
    return TensorRtEngine(
        entry,
        runtime,
        model_form(artifact, work),
        precision=wanted.precision,
        device_peak_flops=manifest.device_peak_flops,
        slots=slots,
    )
