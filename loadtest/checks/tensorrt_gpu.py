"""`make gpu-check`, after the kernels: the served TensorRT engine on this machine's GPU, one report.

Builds f32 and 16-bit engines of a trained artifact and says: parity of every layer's state and of the probabilities, latency
with and without CUDA graphs beside the twin in torch on the GPU and the CPU engine, time to refit, what 16 bits cost in
ranking and NE, and memory. Where TensorRT or a GPU is absent it says so and checks nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.bench import SMALL
from loadtest.checks.check import Check
from loadtest.checks.other_weights import with_other_weights
from loadtest.pipeline import CONFIGS, Pipeline
from model.artifact import Artifact, open_artifact
from model.cli.console import note
from model.flops import FlopModel
from model.metrics.normalized_entropy import NEState
from model.signature import ENCODE_USER, PROBABILITIES, SCORE_CANDIDATES
from model.tensor_spec import CANDIDATES, REQUESTS, USERS, history_size
from serving.config import ServerConfig, artifact_path
from serving.core.host_features import HostFeatures
from serving.core.options import CoreOptions
from serving.core.shapes import Shape, ShapeBuckets
from serving.core.warm_up import WarmUp
from serving.engines.base import Engine, Session, Tensors
from serving.engines.cache import default_cache
from serving.engines.open import build_engine, open_engine
from serving.engines.parity import GATES
from serving.engines.tensorrt.build import BuiltTensorRt, build, timing_cache
from serving.engines.tensorrt.device import Runtime
from serving.engines.tensorrt.engine import RESERVED_SHARE, TensorRtEngine, model_form
from serving.engines.tensorrt.open import NoRuntime, nvidia_runtime
from serving.engines.tensorrt.pieces import PiecewiseSession
from serving.engines.tensorrt.session import ModelForm
from serving.engines.tensorrt.work import WorkPlan
from serving.tuning.engine_work import engine_work

NARROW = "bf16"
LEAST_NE_DELTA = 0.001
"""Relative; half of what the project calls a difference of models."""
RUNS = 50

Batches = list[tuple[Tensors, Tensors, NDArray[np.float32]]]
"""Inputs of both graphs, states left out, and labels [C, tasks]."""


@dataclass
class ServedEngine:
    """The check's subject. `log_batches`: held-out requests with labels, None where there is no log."""

    artifact: Artifact
    runtime: Runtime
    cache: Path
    options: CoreOptions = field(default_factory=CoreOptions)
    log_batches: Callable[[], Batches] | None = None
    twin: Callable[[str, Tensors], Callable[[], object]] | None = None
    probe_width: int | None = None
    runs: int = RUNS

    def work(self, precision: str) -> WorkPlan:
        """What the engine of a precision is built for."""
        return engine_work(self.artifact, self.options, precision)

    def form(self, precision: str) -> ModelForm:
        """How batches meet the graphs of a precision."""
        return model_form(self.artifact, self.work(precision))

    @cached_property
    def built(self) -> dict[str, BuiltTensorRt]:
        made = {}
        for precision in ("f32", NARROW):
            note(f"building the engine in {precision}")
            made[precision] = build(
                self.artifact,
                self.runtime,
                self.work(precision),
                cache=self.cache,
                precision=precision,
                probe_width=self.probe_width,
            )
        return made

    def engine(self, precision: str, *, slots: int = 1, uses_graphs: bool = True) -> TensorRtEngine:
        """A fresh engine with `slots` sessions to open."""
        built = self.built[precision]
        assert built.path is not None, f"the engine in {precision} failed parity"
        return TensorRtEngine(
            built.path,
            self.runtime,
            self.form(precision),
            precision=precision,
            device_peak_flops=built.device_peak_flops,
            slots=slots,
            uses_graphs=uses_graphs,
        )

    def check_build(self) -> Check:
        """Both engines, and one of other weights refitted from the narrow one: how long that took, and what it computes."""
        figures: dict[str, Any] = {}
        for precision, built in self.built.items():
            figures[f"{precision}_seconds"] = round(built.seconds, 1)
            figures[f"{precision}_peak_tflops"] = round(built.device_peak_flops / 1e12, 1)
        with tempfile.TemporaryDirectory(prefix="kunlun-refit-") as folder:
            refitted, moved = self._refitted(Path(folder))
        parity = refitted.parity
        figures["refit_seconds"] = round(refitted.seconds, 2)
        figures["refit_error"] = float(f"{parity.max_probability_error:.2e}")
        figures["refit_moved"] = float(f"{moved:.2e}")
        figures["form"] = self.built[NARROW].prepared.graphs[ENCODE_USER].form
        figures["driver"], figures["device"] = self.runtime.devices[0].driver, self.built[NARROW].identity.device
        figures |= self.runtime.libraries
        is_right = refitted.refitted and parity.passed and moved > parity.gate
        target = (
            f"other weights, which move probabilities by more than {parity.gate:g}, refitted in less time than a build; parity"
        )
        return Check("engine", figures, target, is_right and refitted.seconds < self.built[NARROW].seconds)

    def _refitted(self, folder: Path) -> tuple[BuiltTensorRt, float]:
        """The narrow engine with other weights, compiled as new versions are; how far they move the twin's probabilities."""
        narrow = self.built[NARROW]
        assert narrow.path is not None
        cache = folder / "cache"
        shutil.copytree(narrow.path, cache / narrow.path.name)
        timings = timing_cache(self.cache, narrow.identity)
        if timings.is_file():
            shutil.copy(timings, cache)
        other = with_other_weights(self.artifact, folder / self.artifact.manifest.model / "other-weights")
        note("refitting the engine with other weights")
        work = self.work(NARROW)
        made = build(other, self.runtime, work, cache=cache, precision=NARROW, probe_width=self.probe_width)
        name = f"{SCORE_CANDIDATES}/{PROBABILITIES}"
        return made, float(np.abs(other.golden()[name] - self.artifact.golden()[name]).max())

    def check_parity(self) -> Check:
        """Every layer's state and the probabilities against the twin's golden batch."""
        golden = self.artifact.golden()
        figures: dict[str, Any] = {}
        ok = True
        for precision in self.built:
            engine = self.engine(precision)
            session = PiecewiseSession(engine.open_session(), self.form(precision))
            states = session.run(ENCODE_USER, _of(golden, ENCODE_USER, self.form(precision)))
            scores = session.run(SCORE_CANDIDATES, _of(golden, SCORE_CANDIDATES, self.form(precision)) | states)
            engine.close()
            gate, state_gate = GATES[precision]
            for name, state in states.items():
                error = _relative(state, golden[f"{ENCODE_USER}/{name}"])
                figures[f"{precision}_{name}"] = float(f"{error:.2e}")
                ok &= error <= state_gate
            error = float(np.abs(scores[PROBABILITIES] - golden[f"{SCORE_CANDIDATES}/{PROBABILITIES}"]).max())
            figures[f"{precision}_probability"] = float(f"{error:.2e}")
            ok &= error <= gate
        target = "; ".join(f"{p}: states {GATES[p][1]:g}, probabilities {GATES[p][0]:g}" for p in self.built)
        return Check("parity", figures, f"largest error at most, {target}", ok)

    def check_latency(self) -> Check:
        """Median milliseconds of both graphs, by size; ratios are to the engine with CUDA graphs."""
        cpu = _cpu_engine(self.artifact, self.cache)
        engines: dict[str, Engine] = {
            "graphs": self.engine(NARROW),
            "plain": self.engine(NARROW, uses_graphs=False),
            "cpu": cpu,
        }
        sessions: dict[str, Session] = {name: engine.open_session() for name, engine in engines.items()}
        figures: dict[str, Any] = {}
        faster = True
        for label, graph, inputs in self._shapes():
            calls: dict[str, Callable[[], object]] = {n: partial(s.run, graph, inputs) for n, s in sessions.items()}
            if self.twin is not None:
                calls["torch"] = self.twin(graph, inputs)
            spent = {name: _median_ms(call, self.runs) for name, call in calls.items()}
            figures[label] = {name: round(ms, 3) for name, ms in spent.items()} | {
                f"{name}_ratio": round(ms / spent["graphs"], 2) for name, ms in spent.items() if name != "graphs"
            }
            faster &= all(ms > spent["graphs"] for name, ms in spent.items() if name != "graphs")
        for engine in engines.values():
            engine.close()
        if self.twin is None:
            figures["torch"] = "not measured: no CUDA build of torch, or no training run of the artifact"
        return Check("latency_ms", figures, "with CUDA graphs faster than without, than torch and than the CPU", faster)

    def check_ranking(self) -> Check:
        """What 16 bits change on held-out requests: pairs of shown items that swap, first places that change, NE."""
        target = f"relative NE within {LEAST_NE_DELTA}"
        if self.log_batches is None:
            return Check("ranking", {"not measured": "no log of the artifact's data"}, target, True)
        states: dict[str, NEState] = {}
        flips = _Flips()
        engines = {precision: self.engine(precision) for precision in self.built}
        sessions = {p: PiecewiseSession(e.open_session(), self.form(p)) for p, e in engines.items()}
        for encode, score, labels in self.log_batches():
            found = {}
            for precision, session in sessions.items():
                made = session.run(ENCODE_USER, encode)
                found[precision] = session.run(SCORE_CANDIDATES, {**made, **score})[PROBABILITIES][:, 0]
                known = ~np.isnan(labels[:, 0])
                states[precision] = states.get(precision, NEState()) + NEState.of(found[precision][known], labels[known, 0])
            flips.add(found["f32"], found[NARROW], score["request_index"])
        for engine in engines.values():
            engine.close()
        full, narrow = states["f32"].normalized_entropy, states[NARROW].normalized_entropy
        delta = narrow / full - 1
        figures = {"ne_f32": round(full, 5), f"ne_{NARROW}": round(narrow, 5), "ne_delta": float(f"{delta:.2e}")}
        return Check("ranking", figures | flips.shares, target, abs(delta) <= LEAST_NE_DELTA)

    def check_memory(self) -> Check:
        """What two slots take of the device once every bucket is open, beside what they were known to allocate."""
        device, devices = self.runtime.devices[0], len(self.runtime.devices)
        flops = FlopModel.from_json(self.artifact.manifest.flops, self.artifact.config)
        shapes, host = ShapeBuckets(self.artifact.schema, self.options), HostFeatures(self.artifact)
        every: list[Shape] = [*shapes.encode_shapes, *shapes.score_shapes]
        before = device.free_bytes()
        engine, warm_up = self.engine(NARROW, slots=2 * devices), WarmUp(shapes, host, flops)
        memory = engine.memory(device, 2)
        try:
            for session in [engine.open_session() for _ in range(2 * devices)]:
                if session.device is device:
                    for shape in every:
                        session.prepare(*warm_up.inputs(shape))
            taken = before - device.free_bytes()
        finally:
            engine.close()
        beyond, reserved = taken - memory.total, RESERVED_SHARE * device.total_bytes
        figures = {
            "weights_mib": round(memory.weights / 2**20, 1),
            "session_mib": round(memory.session / 2**20, 1),
            "two_slots_mib": round(memory.total / 2**20, 1),
            "taken_mib": round(taken / 2**20, 1),
            "contexts_and_graphs_mib": round(beyond / 2**20, 1),
            "kept_after_closing_mib": round((before - device.free_bytes()) / 2**20, 1),
            "device_mib": device.total_bytes >> 20,
        }
        target = f"contexts and CUDA graphs of every bucket within the {RESERVED_SHARE:.0%} of the device that are left to them"
        return Check("memory", figures, target, taken > 0 and beyond <= reserved)

    def _shapes(self) -> list[tuple[str, str, Tensors]]:
        host, options = HostFeatures(self.artifact), self.options
        caps = {e.name: e.cap for e in self.artifact.schema.events}
        shapes: list[tuple[str, str, Tensors]] = []
        for users in sorted({1, options.max_batch_users}):
            inputs = host.zeros(host.encode_signature, {USERS: users, **{history_size(e): cap for e, cap in caps.items()}})
            shapes.append((f"encode_{users}_users", ENCODE_USER, inputs))
        for requests, candidates in ((1, 100), (4, 400), (options.max_batch_requests, options.max_batch_candidates)):
            if candidates <= options.max_batch_candidates and requests <= options.max_batch_requests:
                inputs = host.zeros(host.score_signature, {REQUESTS: requests, CANDIDATES: candidates})
                shapes.append((f"score_{requests}x{candidates}", SCORE_CANDIDATES, inputs))
        return shapes

    @property
    def steps(self) -> list[Callable[[], Check]]:
        """Everything, in order."""
        return [self.check_build, self.check_parity, self.check_latency, self.check_ranking, self.check_memory]


@dataclass
class _Flips:
    """Pairs of one request's items that two score lists order differently, and requests whose first item differs."""

    pairs: int = 0
    swapped: int = 0
    requests: int = 0
    firsts: int = 0

    def add(self, one: NDArray[np.float32], other: NDArray[np.float32], request: NDArray[np.int64]) -> None:
        for number in np.unique(request):
            a, b = one[request == number], other[request == number]
            upper = np.triu_indices(len(a), 1)
            self.pairs += len(upper[0])
            self.swapped += int(((a[upper[0]] - a[upper[1]]) * (b[upper[0]] - b[upper[1]]) < 0).sum())
            self.requests += 1
            self.firsts += int(a.argmax() != b.argmax())

    @property
    def shares(self) -> dict[str, float]:
        return {
            "pairs_swapped": float(f"{self.swapped / max(self.pairs, 1):.2e}"),
            "first_changed": float(f"{self.firsts / max(self.requests, 1):.2e}"),
            "requests": self.requests,
        }


def _of(golden: Mapping[str, NDArray[Any]], graph: str, form: ModelForm) -> dict[str, NDArray[Any]]:
    return {spec.name: golden[f"{graph}/{spec.name}"] for spec in form.padded[graph].inputs}


def _relative(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found - wanted).max()) / max(float(np.abs(wanted).max()), 1e-12)


def _median_ms(call: Callable[[], object], runs: int) -> float:
    for _ in range(min(3, runs)):
        call()
    spent = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return 1e3 * statistics.median(spent)


def _cpu_engine(artifact: Artifact, cache: Path) -> Engine:
    """The OpenVINO engine at its own precision, compiled into the check's cache."""
    build_engine(artifact, cache=cache, precision="auto", threads=1)
    return open_engine(artifact, cache=cache, threads_per_slot=1, slots=1)


def held_out_batches(pipeline: Pipeline, requests: int, batch: int = 64) -> Batches:
    """The last held-out requests of the pipeline's log, as the training side makes its inputs."""
    import torch

    from model.data.open_log import open_request_log
    from model.training.batches import BatchMaker
    from model.training.forward import encode_inputs, score_inputs
    from model.training.run import TrainingRun

    run = TrainingRun.open(pipeline.workdir / "run")
    log = open_request_log(pipeline.workdir / "data")
    model, maker, numbers = run.load_model(), BatchMaker(log, run.encoder), pipeline.held_out(log)[-requests:]
    made: Batches = []
    with torch.no_grad():
        for start in range(0, len(numbers), batch):
            given = maker.batch(numbers[start : start + batch])
            encode = {name: tensor.numpy() for name, tensor in encode_inputs(model, given).items()}
            states = tuple(torch.zeros(given.requests, *spec.row_shape) for spec in model.encode_user.signature.outputs)
            score = {name: tensor.numpy() for name, tensor in score_inputs(model, given, states).items()}
            for spec in model.encode_user.signature.outputs:
                del score[spec.name]
            made.append((encode, score, given.labels.numpy()))
    return made


def torch_twin(pipeline: Pipeline) -> Callable[[str, Tensors], Callable[[], object]] | None:
    """Calls of the twin on the GPU with its inputs there; None where torch has no CUDA."""
    import torch

    from model.layers.served_form import served_form
    from model.training.run import TrainingRun

    if not torch.cuda.is_available():
        return None
    model = TrainingRun.open(pipeline.workdir / "run").load_model().cuda().eval()

    def prepared(graph: str, inputs: Tensors) -> Callable[[], object]:
        module = model.encode_user if graph == ENCODE_USER else model.score_candidates
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])).cuda() for spec in module.signature.inputs]

        def call() -> None:
            with torch.inference_mode(), served_form(), torch.autocast("cuda", torch.bfloat16):
                module(*tensors)
            torch.cuda.synchronize()

        return call

    return prepared


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.tensorrt_gpu", description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/gpu_check/served"), help="where things are kept")
    parser.add_argument("--data", type=Path, help="Metarank-format log to train on (default: synthetic data, `small`)")
    parser.add_argument("--kernels", type=Path, help="what `python -m kernels.bench` printed, to be part of the last line")
    report = Path("runs/gpu_check/report.md")
    parser.add_argument("--report", type=Path, default=report, help="Markdown file to add to (default %(default)s)")
    parser.add_argument("--requests", type=int, default=2000, help="held-out requests to score (default %(default)s)")
    arguments = parser.parse_args()
    kernels = json.loads(arguments.kernels.read_text().splitlines()[-1]) if arguments.kernels else {"ok": True}
    try:
        runtime = nvidia_runtime()
    except NoRuntime as error:
        said = kernels | {"served_engine": f"not verified: {error}"}
        sys.stdout.write(json.dumps(said) + "\n")
        return 0 if said["ok"] else 1
    config = None if arguments.data is not None else CONFIGS / "bench_small.yaml"
    pipeline = Pipeline(arguments.workdir, data=arguments.data, config=config, synthetic=() if arguments.data else SMALL)
    if not Path(pipeline.models).is_dir():
        pipeline.run()
    artifact = open_artifact(artifact_path(ServerConfig(repository=Path(pipeline.models))))
    subject = ServedEngine(
        artifact,
        runtime,
        default_cache(artifact),
        log_batches=lambda: held_out_batches(pipeline, arguments.requests),
        twin=torch_twin(pipeline),
    )
    checks = []
    for step in subject.steps:
        checks.append(step())
        note(f"[bold]{checks[-1].name}[/] {checks[-1].figures} ({'met' if checks[-1].ok else 'NOT met'})")
    with arguments.report.open("a", encoding="utf-8") as report:
        report.write(page(checks, artifact))
    served = {check.name: check.figures | {"target": check.target, "ok": check.ok} for check in checks}
    said = kernels | {"ok": kernels["ok"] and all(check.ok for check in checks), "served_engine": served}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0 if said["ok"] else 1


def page(checks: list[Check], artifact: Artifact) -> str:
    """The section of the report."""
    lines = [f"\n## The served engine: {artifact.manifest.model} {artifact.manifest.version}\n"]
    lines += ["| check | figure | target | met |", "|--|--|--|--|"]
    for check in checks:
        figures = ", ".join(f"{name} {value}" for name, value in check.figures.items())
        lines.append(f"| {check.name} | {figures} | {check.target} | {'yes' if check.ok else '**no**'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
