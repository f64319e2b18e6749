"""`kunlun compile --target tensorrt`: typed graphs → built engines in the engine cache, checked against the torch twin.

Where the cache has an engine of the same graphs with other weights for this machine, it is refitted, which takes seconds. Where
there is none, or the refitted one cannot be made or fails parity, TensorRT builds one, with the timings of kernels that earlier
builds have kept. Without a GPU all that needs none is done.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from kernels.tensorrt.bodies import TYPES
from model.artifact import Artifact, ArtifactError, sha256_of
from model.signature import GraphSignature
from model.tensor_spec import TensorSpec
from serving.engines import cache as engine_cache
from serving.engines.base import DeviceError
from serving.engines.cache import GRAPHS, EngineIdentity
from serving.engines.parity import check_parity
from serving.engines.tensorrt.device import BuildRequest, Runtime, give_back
from serving.engines.tensorrt.engine import TensorRtEngine, model_form, plan_file
from serving.engines.tensorrt.open import identity
from serving.engines.tensorrt.pieces import PiecewiseSession
from serving.engines.tensorrt.prepare import Prepared, prepare
from serving.engines.tensorrt.session import ModelForm, TensorRtSession
from serving.engines.tensorrt.work import GraphWork, Profile, WorkPlan, shape_of

PROBE_WIDTH, PROBE_RUNS, PROBE_CHAINS = 4096, 15, (1, 9)


@dataclass(frozen=True)
class BuiltTensorRt:
    """Outcome of a build. `path`: None when parity failed; `refitted`: from an engine of other weights."""

    path: Path | None
    identity: EngineIdentity
    parity: engine_cache.ParityFigures
    device_peak_flops: float
    seconds: float
    refitted: bool
    prepared: Prepared


def build(
    artifact: Artifact,
    runtime: Runtime,
    work: WorkPlan,
    *,
    cache: Path,
    precision: str,
    note: Callable[[str], None] = lambda _: None,
    probe_width: int | None = None,
) -> BuiltTensorRt:
    """Build or refit both graphs, check parity, measure the peak, publish. `note` hears each stage.

    Raises `ArtifactError` where the artifact or TensorRT does not allow it, `DeviceError` where the device fails.
    """
    started = time.perf_counter()
    wanted, form = identity(artifact, runtime, work, precision), model_form(artifact, work)
    timings = timing_cache(cache, wanted)
    with tempfile.TemporaryDirectory(prefix="kunlun-tensorrt-") as scratch:
        typed, compiled = Path(scratch) / "typed", Path(scratch) / "compiled"
        typed.mkdir()
        compiled.mkdir()
        note("typing the graphs and checking them on the CPU")
        prepared = prepare(artifact, form, wanted.precision, typed)
        note("measuring the peak")
        peak = measure_peak_flops(runtime, wanted.precision, Path(scratch), timings, probe_width or PROBE_WIDTH)

        def made(doing: str, plan: Callable[[str], bytes]) -> engine_cache.ParityFigures:
            """Parity of the engine of `plan(graph)`, which `compiled` then holds."""
            for graph in GRAPHS:
                note(f"{doing} {graph}")
                (compiled / plan_file(graph)).write_bytes(plan(graph))
            note("checking parity with the torch twin")
            engine = TensorRtEngine(compiled, runtime, form, precision=wanted.precision, device_peak_flops=peak, slots=1)
            try:
                return check_parity(PiecewiseSession(engine.open_session(), form), wanted.precision, artifact)
            finally:
                engine.close()

        def built(graph: str) -> bytes:
            return runtime.build(_request(form, graph, typed, timings))

        def refitted(sibling: Path, graph: str) -> bytes:
            return runtime.refit((sibling / plan_file(graph)).read_bytes(), typed / f"{graph}.onnx")

        parity, sibling = None, refittable(cache, wanted, prepared)
        if sibling is not None:
            parity = _unless_it_fails(partial(made, "refitting", partial(refitted, sibling)), note)
        is_refitted = parity is not None
        if parity is None:
            parity = made("building", built)
        seconds = time.perf_counter() - started
        path = None
        if parity.passed:
            about = provenance(artifact, runtime, work, prepared, refitted=is_refitted)
            path = engine_cache.publish(cache, artifact, wanted, compiled, parity, peak, seconds, about)
    return BuiltTensorRt(path, wanted, parity, peak, seconds, is_refitted, prepared)


def _unless_it_fails(
    refit: Callable[[], engine_cache.ParityFigures], note: Callable[[str], None]
) -> engine_cache.ParityFigures | None:
    """Parity of a refitted engine; None, noted, where it cannot be made or does not pass. Raises where the device is lost."""
    try:
        parity = refit()
    except (ArtifactError, DeviceError, OSError) as error:
        if isinstance(error, DeviceError) and error.is_lost:
            raise
        note(f"it cannot be refitted ({error}); building anew")
        return None
    if not parity.passed:
        note(f"refitted, it fails: {parity.complaint()}; building anew")
        return None
    return parity


def provenance(artifact: Artifact, runtime: Runtime, work: WorkPlan, prepared: Prepared, *, refitted: bool) -> dict[str, Any]:
    """Where an engine comes from, for people and audits, and what refitting looks for."""
    device = runtime.devices[0]
    return {
        "sm": device.sm,
        "driver": device.driver,
        "libraries": runtime.libraries,
        "weights": artifact.manifest.files["graphs/weights.safetensors"],
        "profiles": {graph: [p.model_dump() for p in work.of(graph).profiles] for graph in GRAPHS},
        "buckets": {graph: len(work.of(graph).buckets) for graph in GRAPHS},
        "refitted": refitted,
        **prepared.to_json(),
    }


def refittable(cache: Path, wanted: EngineIdentity, prepared: Prepared) -> Path | None:
    """An intact entry of another artifact for the same machine, libraries, work and precision, of graphs that differ in weights
    alone. Compiling an artifact again builds it anew."""
    structures = {name: graph.structure for name, graph in prepared.graphs.items()}
    for path, manifest in engine_cache.entries(cache):
        found = manifest.identity
        alike = found != wanted and found.model_copy(update={"artifact_digest": wanted.artifact_digest}) == wanted
        graphs = {name: graph["structure"] for name, graph in manifest.provenance.get("graphs", {}).items()}
        if alike and graphs == structures and all(_is_intact(path / name, digest) for name, digest in manifest.files.items()):
            return path
    return None


def _is_intact(file: Path, digest: str) -> bool:
    return file.is_file() and sha256_of(file) == digest


def timing_cache(cache: Path, wanted: EngineIdentity) -> Path:
    """Where timings of kernels are kept between builds for one kind of GPU and one TensorRT."""
    name = f"{wanted.device} {wanted.libraries['tensorrt']}".replace(" ", "-").replace("/", "-")
    return cache / f"tensorrt-{name}.timings"


def _request(form: ModelForm, graph: str, typed: Path, timings: Path) -> BuildRequest:
    inputs = form.built[graph].inputs
    return BuildRequest(
        typed / f"{graph}.onnx", form.work[graph], lambda sizes: {s.name: shape_of(s, sizes) for s in inputs}, timings
    )


def measure_peak_flops(runtime: Runtime, precision: str, scratch: Path, timings: Path, width: int) -> float:
    """Matrix-product FLOP/s of the first device in this engine, copies left out: the denominator of MFU.

    Products by constant weights, as in the graphs. The time of one is the difference between two chains of them.
    """
    spent = {}
    for products in PROBE_CHAINS:
        file, plan = scratch / f"probe_{products}.onnx", scratch / f"probe_{products}.plan"
        onnx.save(_probe(products, width, precision), file)
        work = GraphWork(buckets=({"U": width},), profiles=(Profile(least={"U": width}, best={"U": width}, most={"U": width}),))
        plan.write_bytes(runtime.build(BuildRequest(file, work, lambda sizes: {"x": (sizes["U"], 1)}, timings)))
        spent[products] = _probe_seconds(runtime, plan, work, width)
    few, many = PROBE_CHAINS
    return 2.0 * width**3 * (many - few) / max(spent[many] - spent[few], 1e-9)


def _probe(products: int, width: int, precision: str) -> onnx.ModelProto:
    """x [U, 1] widened and put through `products` products; one column comes out: little is copied."""
    kind = TYPES[precision]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((width, width)).astype(np.float32) / np.sqrt(width)
    constants = [
        onnx.numpy_helper.from_array(weights.astype(helper.tensor_dtype_to_np_dtype(kind)), "w"),
        onnx.numpy_helper.from_array(rng.standard_normal((1, width)).astype(np.float32), "row"),
        onnx.numpy_helper.from_array(np.array([0], np.int64), "column"),
    ]
    nodes = [helper.make_node("Mul", ["x", "row"], ["wide"]), helper.make_node("Cast", ["wide"], ["h_0"], to=kind)]
    nodes += [helper.make_node("MatMul", [f"h_{at}", "w"], [f"h_{at + 1}"]) for at in range(products)]
    nodes += [helper.make_node("Gather", [f"h_{products}", "column"], ["g"], axis=1)]
    nodes += [helper.make_node("Cast", ["g"], ["y"], to=onnx.TensorProto.FLOAT)]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["U", 1]) for name in "xy")
    graph = helper.make_graph(nodes, "probe", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _probe_seconds(runtime: Runtime, plan: Path, work: GraphWork, width: int) -> float:
    device = runtime.devices[0]
    signature = GraphSignature("probe", (TensorSpec("x", "float32", ("U", 1)),), (TensorSpec("y", "float32", ("U", 1)),))
    form = ModelForm({"probe": signature}, {"probe": signature}, {"probe": work})
    inputs = {"x": np.random.default_rng(1).standard_normal((width, 1)).astype(np.float32)}
    spent = []
    with contextlib.ExitStack() as stack:
        program = runtime.load(device, plan)
        stack.callback(give_back, "the probe", [program.close])
        session = TensorRtSession(device, {"probe": program}, form)
        stack.callback(session.close)
        session.run("probe", inputs)
        for _ in range(PROBE_RUNS):
            started = time.perf_counter()
            session.run("probe", inputs)
            spent.append(time.perf_counter() - started)
    return statistics.median(spent)
