"""The OpenVINO engine for CPUs.

Owns conversion of the two portable graphs to OpenVINO's own form, their compilation, and sessions.
Every session owns its compiled models: on CPUs two one-thread models in two threads beat one
two-thread model. The GIL is released while a graph runs. `encode_user` is compiled once per shape:
it is hundreds of small operators, which a graph of dynamic shapes prepares anew whenever the shape
changes, at about the price of running them (`docs/benchmarking.md`). `score_candidates`, a few large
products, is one dynamic graph: a copy of its weights per shape would always be cold.

Traps that shape this file: what `export_model` wrote `import_model` (2026.4) reads back as a graph
that computes wrong states without a word (a guess: it loses the settings of fused rotary nodes), so
the cache holds the converted graphs and sessions compile them (about a second each); the first use
of an input shape costs about one extra inference (the scheduler warms every bucket);
a `share_inputs` request cannot grow its shapes, so there is one for every shape; bf16 is chosen silently
where the CPU has it, so precision is always set.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13

from model.architectures.base import ArchitectureConfig
from model.architectures.terms import PRODUCT_WIDTH, FeatureWidths
from model.artifact import Artifact, ArtifactError
from model.signature import ENCODE_USER
from serving.engines.base import Tensors
from serving.engines.cache import FUSED_BLOCK, GRAPHS, EngineIdentity, Precision
from serving.engines.openvino_kernels.build import LIBRARY, Kernels, KernelsUnavailable, build, load, source_digest
from serving.engines.openvino_kernels.fuse import fuse_pffn

TARGET = "openvino"
PER_SHAPE = frozenset({ENCODE_USER})
LEAST_BF16_WIDTH = 64
"""Narrower products gain little from bf16, and on a CPU with AMX a few rows of them differ in bits from many."""

PROBE_ROWS, PROBE_WIDTH, PROBE_RUNS = 512, 1024, 15

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_Key = tuple[str, _Shapes]


class OpenVinoSession:
    """One execution context of both graphs; used by one thread at a time."""

    fault = ""

    def __init__(
        self, models: Mapping[str, Any], settings: Mapping[str, Any], cloning: threading.Lock, per_shape: frozenset[str]
    ) -> None:
        self._models, self._settings, self._cloning, self._per_shape = models, settings, cloning, per_shape
        self._compiled: dict[_Key, Any] = {}
        self._compiling = threading.Lock()
        self._requests: dict[_Key, tuple[Any, list[str]]] = {}

    def prepare(self, graph: str, inputs: Tensors) -> None:
        """Compile what `run` needs for these shapes: half a second for `encode_user`."""
        self._model(graph, _shapes(inputs))

    def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Run `graph`, compiling it first if it was not prepared; the outputs are copies.

        The engine reads `inputs` where they are; they are kept until the next call with these shapes.
        """
        key = graph, _shapes(inputs)
        if key not in self._requests:
            model = self._model(*key)
            self._requests[key] = model.create_infer_request(), [port.get_any_name() for port in model.outputs]
        request, outputs = self._requests[key]
        results = request.infer(inputs, share_inputs=True, share_outputs=False)
        return dict(zip(outputs, results.to_tuple(), strict=True))

    def _model(self, graph: str, shapes: _Shapes) -> Any:
        key = graph, shapes if graph in self._per_shape else ()
        if (found := self._compiled.get(key)) is not None:  # without waiting for another shape's compilation
            return found
        with self._compiling:
            if key not in self._compiled:
                with self._cloning:  # sessions share the graphs they clone, and nothing else
                    model = self._models[graph].clone()
                if graph in self._per_shape:
                    model.reshape({name: list(shape) for name, shape in shapes})
                self._compiled[key] = ov.Core().compile_model(model, "CPU", self._settings)
            return self._compiled[key]


def _fill_type_tables() -> None:
    """Fill OpenVINO's tables between its types and numpy's, here and not in a slot.

    They are filled at first use, under a C++ guard and with calls into Python. When the first runs of two slots meet there,
    one waits for the guard with the interpreter lock in hand and the other for the lock: the process hangs for good.
    """
    ov.Type.f32.to_dtype()
    ov.Type(np.dtype(np.float32))


def _shapes(inputs: Tensors) -> _Shapes:
    return tuple((name, tensor.shape) for name, tensor in inputs.items())


class OpenVinoEngine:
    """Converted graphs of one artifact, compiled by every session.

    `per_shape`: `encode_user` is compiled for every shape; else both graphs once, so that no shape is the first to compile and
    weights are copied once, which is what a backup wants. `fused_block`: with the kernels of `build_kernels` in place of the
    operators they stand for; raises `ArtifactError` where the directory has none or the CPU cannot run them, rather than serve
    other bits.
    """

    name = TARGET
    fused: int
    """Blocks of the graphs that run as one of our kernels."""

    def __init__(
        self,
        directory: Path,
        *,
        precision: str,
        threads: int,
        device_peak_flops: float,
        fused_block: bool = False,
        per_shape: bool = True,
    ) -> None:
        self.entry, self.precision, self.threads, self.device_peak_flops = directory, precision, threads, device_peak_flops
        self._cloning, self._per_shape = threading.Lock(), PER_SHAPE if per_shape else frozenset[str]()
        _fill_type_tables()
        core = ov.Core()
        self._models = {graph: core.read_model(directory / f"{graph}.xml") for graph in GRAPHS}
        self.fused = self._fuse(directory / LIBRARY) if fused_block else 0

    def _fuse(self, library: Path) -> int:
        try:
            able = load(library)
        except KernelsUnavailable as error:
            raise ArtifactError(f"fused_block: {error}; compile and serve without it") from error
        bf16 = self.precision == "bf16" and able is Kernels.BF16
        return sum(fuse_pffn(model, library, bf16=bf16) for model in self._models.values())

    def open_session(self) -> OpenVinoSession:
        """Sessions share nothing that is compiled and run in parallel; graphs are compiled at their first use."""
        if not self._models:
            raise RuntimeError("the engine is closed")
        return OpenVinoSession(self._models, cpu_settings(self.precision, self.threads), self._cloning, self._per_shape)

    def close(self) -> None:
        """Drop the graphs; sessions free their memory when they are dropped."""
        self._models = {}


def convert_graphs(artifact: Artifact, directory: Path) -> None:
    """Write both graphs in OpenVINO's own form, weights in full precision."""
    core = ov.Core()
    for graph in GRAPHS:
        ov.save_model(core.read_model(artifact.graph(graph)), directory / f"{graph}.xml", compress_to_fp16=False)


def build_kernels(directory: Path) -> str:
    """Compile our kernels beside the graphs; returns which, for people. Raises `ArtifactError` where that cannot be done."""
    try:
        return build(directory)
    except KernelsUnavailable as error:
        raise ArtifactError(f"fused_block: {error}; compile and serve without it") from error


def identity(artifact: Artifact, *, precision: str, threads: int, fused_block: bool = False) -> EngineIdentity:
    """What a compiled engine of `artifact` on this machine depends on; resolves precision `auto`."""
    core, widths = ov.Core(), FeatureWidths.of(artifact.schema)
    return EngineIdentity(
        artifact_digest=artifact.digest,
        target=TARGET,
        device=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip() + _instruction_sets(core),
        libraries={"openvino": str(ov.__version__)} | ({FUSED_BLOCK: source_digest()} if fused_block else {}),
        precision=resolve_precision(precision, row_invariant_in_bf16(artifact.config, widths)),
        threads=threads,
    )


def row_invariant_in_bf16(config: ArchitectureConfig, features: FeatureWidths) -> bool:
    """Whether every bf16 product of a model gives a row the same bits in any number of rows, AMX included.

    Its streams must be wide enough, and products with one row per user or request must have inner widths that need no
    padding (those over features are padded by the graphs). An architecture that declares no widths is not known to.
    """
    widths = config.product_widths(features)
    if widths is None:
        return False
    return min(widths.streams) >= LEAST_BF16_WIDTH and not any(width % PRODUCT_WIDTH for width in widths.inner)


def resolve_precision(precision: str, row_invariant: bool = True) -> Precision:
    """`auto` is bf16 where the CPU multiplies it natively and the model is `row_invariant_in_bf16`, f32 elsewhere.

    Raises `ArtifactError` for what the CPU cannot do: OpenVINO would run f32 under the name of bf16.
    """
    has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    match precision:
        case "auto":
            return "bf16" if has_bf16 and row_invariant else "f32"
        case "f32":
            return "f32"
        case "bf16" if has_bf16:
            return "bf16"
        case "bf16":
            raise ArtifactError("precision: expected f32 (or auto) on this CPU, found bf16, which it has no instructions for")
    raise ArtifactError(f"precision: expected auto, f32 or bf16, found {precision!r}")


def cpu_settings(precision: str, threads: int) -> dict[str, Any]:
    """Plug-in settings of one session."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }


def measure_peak_flops(precision: str, threads: int) -> float:
    """Matrix-product FLOP/s of this engine at the session's precision and threads: the denominator of MFU.

    A constant-weight product of a batch's size; the median run, so that a neighbour's noise neither
    raises nor lowers it much.
    """
    run, seconds = peak_probe(precision, threads), []
    for _ in range(PROBE_RUNS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return 2.0 * PROBE_ROWS * PROBE_WIDTH**2 / statistics.median(seconds)


def peak_probe(precision: str, threads: int) -> Callable[[], Any]:
    """A call that multiplies [PROBE_ROWS, PROBE_WIDTH] by constant weights [PROBE_WIDTH, PROBE_WIDTH]."""
    rng = np.random.default_rng(0)
    left = opset13.parameter([PROBE_ROWS, PROBE_WIDTH], np.float32)
    weights = opset13.constant(rng.standard_normal((PROBE_WIDTH, PROBE_WIDTH)).astype(np.float32))
    model = ov.Model([opset13.matmul(left, weights, False, False)], [left], "probe")
    request = ov.Core().compile_model(model, "CPU", cpu_settings(precision, threads)).create_infer_request()
    x = rng.standard_normal((PROBE_ROWS, PROBE_WIDTH)).astype(np.float32)
    return lambda: request.infer([x])


def _instruction_sets(core: ov.Core) -> str:
    """Capabilities beside the marketing name: virtual machines often hide the model behind one name."""
    return " [" + " ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))) + "]"
