"""`kunlun compile --target tensorrt`: on a GPU an engine; without one all that needs none, and what remains to be done."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from model.artifact import Artifact
from serving.core.options import CoreOptions
from serving.engines.tensorrt.engine import model_form
from serving.engines.tensorrt.open import NoRuntime, nvidia_runtime, resolve_precision
from serving.engines.tensorrt.work import WorkPlan
from serving.tuning.engine_work import engine_work, padded_because

NOT_BUILT = 3
"""Exit status: everything was prepared, and no engine built for want of a GPU."""


def compile_tensorrt(artifact: Artifact, options: CoreOptions, cache: Path, precision: str, *, as_json: bool) -> int:
    """Build, or prepare and say what is missing; the process's exit status. Raises `ArtifactError`."""
    resolved = resolve_precision(precision)
    work = engine_work(artifact, options, resolved)
    because = padded_because(artifact, resolved)
    try:
        runtime = nvidia_runtime()
    except NoRuntime as error:
        return _prepare(artifact, work, cache, resolved, str(error), because, as_json=as_json)
    from serving.engines.tensorrt.build import build

    built = build(artifact, runtime, work, cache=cache, precision=resolved, note=lambda stage: print(stage, file=sys.stderr))
    report = {
        "engine": str(built.path) if built.path else None,
        "target": built.identity.target,
        "device": built.identity.device,
        "precision": built.identity.precision,
        "parity": built.parity.model_dump() | {"passed": built.parity.passed},
        "refitted": built.refitted,
        "compile_seconds": round(built.seconds, 3),
        "device_peak_gflops": round(built.device_peak_flops / 1e9, 1),
        "work": _work_report(work, because),
    }
    _print(report, as_json)
    if built.path is None:
        print(f"kunlun compile: {built.parity.complaint()}", file=sys.stderr)
        return 1
    return 0


def _prepare(
    artifact: Artifact, work: WorkPlan, cache: Path, precision: str, why: str, because: str | None, *, as_json: bool
) -> int:
    from serving.engines.tensorrt.prepare import prepare

    target = cache / f"{artifact.manifest.model}-{artifact.manifest.version}-tensorrt-{precision}.prepared"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    prepared = prepare(artifact, model_form(artifact, work), precision, target)
    report = {
        "engine": None,
        "target": "tensorrt",
        "precision": precision,
        "prepared": str(target),
        **prepared.to_json(),
        "work": _work_report(work, because),
        "not_built": why,
        "remains": [
            "on a machine with a GPU, TensorRT and the plugin library (docs/tensorrt.md): "
            f"kunlun compile {artifact.path} --target tensorrt --precision {precision}",
            "which builds, checks parity on the GPU, measures its peak and publishes the engine",
        ],
    }
    (target / "prepared.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (target / "work.json").write_text(work.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _print(report, as_json)
    return NOT_BUILT


def _work_report(work: WorkPlan, because: str | None) -> dict[str, Any]:
    return {
        graph: {"buckets": len(work.of(graph).buckets), "profiles": len(work.of(graph).profiles)}
        for graph in ("encode_user", "score_candidates")
    } | {"form": "jagged" if work.is_jagged else "padded", "padded_because": because}


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        if isinstance(value, list):
            print(f"{name:<20}{value[0]}", *(f"{'':<20}{line}" for line in value[1:]), sep="\n")
        else:
            print(f"{name:<20}{json.dumps(value) if isinstance(value, dict) else value}")
