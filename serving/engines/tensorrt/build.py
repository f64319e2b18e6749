"""`kunlun compile --target tensorrt`: typed graphs → built engines in the engine cache, checked against the torch twin.

Where the cache has an engine of the same graphs with other weights for this machine, it is refitted, which takes seconds; else
TensorRT builds one, with the timings of kernels that earlier builds have kept. Without a GPU all that needs none is done.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from model.artifact import Artifact, sha256_of
from model.signature import GraphSignature
from model.tensor_spec import TensorSpec
from serving.engines import cache as engine_cache
from serving.engines.cache import GRAPHS, EngineIdentity
from serving.engines.parity import check_parity
from serving.engines.tensorrt.device import BuildRequest, Runtime
from serving.engines.tensorrt.engine import TensorRtEngine, model_form, plan_file
from serving.engines.tensorrt.open import identity
from serving.engines.tensorrt.pieces import PiecewiseSession
from serving.engines.tensorrt.prepare import Prepared, prepare
from serving.engines.tensorrt.session import ModelForm, TensorRtSession
from serving.engines.tensorrt.typed_graph import TYPES
from serving.engines.tensorrt.work import GraphWork, Profile, WorkPlan, shape_of

PROBE_WIDTH, PROBE_RUNS, PROBE_CHAINS = 4096, 15, (1, 9)
WORK_FILE = "work.json"


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
    """Build or refit both graphs, check parity, measure the peak, publish. `note` hears each stage. Raises `ArtifactError`."""
    started = time.perf_counter()
    wanted, form = identity(artifact, runtime, work, precision), model_form(artifact, work)
    with tempfile.TemporaryDirectory(prefix="kunlun-tensorrt-") as scratch:
        typed, compiled = Path(scratch) / "typed", Path(scratch) / "compiled"
        typed.mkdir()
        compiled.mkdir()
        note("typing the graphs and checking them on the CPU")
        prepared = prepare(artifact, form, wanted.precision, typed)
        sibling = refittable(cache, wanted, prepared)
        for graph in GRAPHS:
            note(f"{'refitting' if sibling else 'building'} {graph}")
            if sibling is not None:
                plan = runtime.refit((sibling / plan_file(graph)).read_bytes(), typed / f"{graph}.onnx")
            else:
                plan = runtime.build(_request(form, graph, typed, timing_cache(cache, wanted)))
            (compiled / plan_file(graph)).write_bytes(plan)
        note("measuring the peak")
        width, timings = probe_width or PROBE_WIDTH, timing_cache(cache, wanted)
        peak = measure_peak_flops(runtime, wanted.precision, Path(scratch), timings, width)
        (compiled / WORK_FILE).write_text(work.model_dump_json(indent=1) + "\n", encoding="utf-8")
        engine = TensorRtEngine(compiled, runtime, form, precision=wanted.precision, device_peak_flops=peak, slots=1)
        try:
            note("checking parity with the torch twin")
            parity = check_parity(PiecewiseSession(engine.open_session(), form), wanted.precision, artifact)
        finally:
            engine.close()
        seconds = time.perf_counter() - started
        path = None
        if parity.passed:
            about = provenance(artifact, runtime, work, prepared, refitted=sibling is not None)
            path = engine_cache.publish(cache, artifact, wanted, compiled, parity, peak, seconds, about)
    return BuiltTensorRt(path, wanted, parity, peak, seconds, sibling is not None, prepared)


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
        intact = alike and graphs == structures and all(sha256_of(path / n) == d for n, d in manifest.files.items())
        if intact:
            return path
    return None


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
    program = runtime.load(device, plan)
    signature = GraphSignature("probe", (TensorSpec("x", "float32", ("U", 1)),), (TensorSpec("y", "float32", ("U", 1)),))
    session = TensorRtSession(
        device, {"probe": program}, ModelForm({"probe": signature}, {"probe": signature}, {"probe": work})
    )
    inputs = {"x": np.random.default_rng(1).standard_normal((width, 1)).astype(np.float32)}
    spent = []
    try:
        session.run("probe", inputs)
        for _ in range(PROBE_RUNS):
            started = time.perf_counter()
            session.run("probe", inputs)
            spent.append(time.perf_counter() - started)
    finally:
        session.close()
        program.close()
    return statistics.median(spent)
