"""Opens the compiled engine of an artifact, or builds it: the one place that knows which engines exist.

`open_engine` (serving) only loads from the engine cache and fails closed; `build_engine`
(`kunlun compile`) compiles, checks parity against the torch twin, measures the peak and publishes.
Engine libraries are imported only when asked for.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from model.artifact import Artifact, ArtifactError
from serving.engines import cache as engine_cache
from serving.engines.base import Engine
from serving.engines.parity import check_parity
from serving.engines.tensorrt.work import WorkPlan

TARGETS = ("openvino", "tensorrt")


@dataclass(frozen=True)
class BuiltEngine:
    """Outcome of a build; `path` is None when parity failed and nothing was published."""

    path: Path | None
    identity: engine_cache.EngineIdentity
    parity: engine_cache.ParityFigures
    device_peak_flops: float
    compile_seconds: float
    kernels: str
    """Whose kernels run the graphs, for people."""


def open_engine(
    artifact: Artifact,
    *,
    engine: str = "openvino",
    cache: Path,
    precision: str = "auto",
    threads_per_slot: int,
    slots: int,
    fused_block: bool = False,
    work: WorkPlan | None = None,
    backup: bool = True,
) -> Engine:
    """The cached engine of `artifact`, for `slots` sessions of `threads_per_slot` threads; raises `ArtifactError`.

    `fused_block`: the one compiled with `kunlun compile --fused-block`. `work`: what a TensorRT engine must have been built
    for; `backup`: with the CPU engine behind it, which must be compiled, too. Nothing is built here.
    """
    _known(engine)
    if slots < 1:
        raise ValueError(f"slots: expected at least 1, found {slots}")
    if engine == "tensorrt":
        return _open_tensorrt(artifact, work, cache=cache, precision=precision, slots=slots, backup=backup)
    return _open_openvino(artifact, cache, precision, threads_per_slot, fused_block=fused_block)


def _open_openvino(
    artifact: Artifact, cache: Path, precision: str, threads: int, *, fused_block: bool = False, per_shape: bool = True
) -> Engine:
    from serving.engines import openvino_engine

    wanted = openvino_engine.identity(artifact, precision=precision, threads=threads, fused_block=fused_block)
    entry, manifest = engine_cache.load(cache, artifact, wanted)
    return openvino_engine.OpenVinoEngine(
        entry,
        precision=wanted.precision,
        threads=wanted.threads,
        device_peak_flops=manifest.device_peak_flops,
        fused_block=fused_block,
        per_shape=per_shape,
    )


def _open_tensorrt(
    artifact: Artifact, work: WorkPlan | None, *, cache: Path, precision: str, slots: int, backup: bool
) -> Engine:
    from serving.engines.backed import BackedEngine
    from serving.engines.tensorrt.open import nvidia_runtime, open_built

    if work is None:
        raise ValueError("work: expected the batches that a TensorRT engine was built for, found none")
    cpu = _open_openvino(artifact, cache, "auto", 1, per_shape=False) if backup else None
    try:
        engine = open_built(artifact, nvidia_runtime(), work, cache=cache, precision=precision, slots=slots)
    except BaseException:
        if cpu is not None:
            cpu.close()
        raise
    return engine if cpu is None else BackedEngine(engine, cpu)


def engine_identity(artifact: Artifact, *, precision: str = "auto", threads: int) -> engine_cache.EngineIdentity:
    """What the OpenVINO engine of `artifact` on this machine is known by; resolves precision `auto`. Raises `ArtifactError`."""
    from serving.engines import openvino_engine

    return openvino_engine.identity(artifact, precision=precision, threads=threads)


def build_engine(
    artifact: Artifact,
    *,
    cache: Path,
    precision: str,
    threads: int,
    fused_block: bool = False,
) -> BuiltEngine:
    """Compile for OpenVINO, check parity, measure the peak, publish. Nothing is published when parity fails.

    Raises `ArtifactError`, also where `fused_block` is asked for and cannot be built. For GPUs see `serving.engines.tensorrt`.
    """
    from serving.engines import openvino_engine

    wanted = openvino_engine.identity(artifact, precision=precision, threads=threads, fused_block=fused_block)
    peak = openvino_engine.measure_peak_flops(wanted.precision, threads)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kunlun-compile-") as converted:
        openvino_engine.convert_graphs(artifact, Path(converted))
        kernels = openvino_engine.build_kernels(Path(converted)) if fused_block else "OpenVINO's own"
        engine = openvino_engine.OpenVinoEngine(
            Path(converted), precision=wanted.precision, threads=threads, device_peak_flops=peak, fused_block=fused_block
        )
        kernels += f", in place of {engine.fused} block(s) of the graphs" if fused_block else ""
        session = engine.open_session()
        seconds = time.perf_counter() - started
        parity = check_parity(session, engine.precision, artifact)
        if not parity.passed:
            return BuiltEngine(None, wanted, parity, peak, seconds, kernels)
        path = engine_cache.publish(cache, artifact, wanted, Path(converted), parity, peak, seconds)
    return BuiltEngine(path, wanted, parity, peak, seconds, kernels)


def _known(engine: str) -> None:
    if engine not in TARGETS:
        raise ArtifactError(f"engine: expected one of {', '.join(TARGETS)}, found {engine!r}")
