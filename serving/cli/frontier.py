"""`kunlun frontier`: measure what each degradation loses and saves, and keep it beside the compiled engine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from kunlun.cli import Command, UsageError
from model.artifact import ArtifactError, open_artifact
from model.cli.console import progress_bar
from model.config import ConfigError, save_json
from model.data.request_log import load_request_log
from serving.core.frontier import Frontier, frontier_path
from serving.core.options import CoreOptions
from serving.engines.cache import default_cache
from serving.engines.open import open_engine
from serving.tuning.measure_frontier import FrontierMeasurement


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("artifact", type=Path, help="version directory: <repository>/<model>/<version>")
    parser.add_argument("--data", type=Path, required=True, help="canonical log, as `kunlun prepare` writes it")
    parser.add_argument("--requests", type=int, default=500, help="the newest requests of the log to answer (default: 500)")
    parser.add_argument("--candidates", type=int, default=100, help="request size that times are stated for (default: 100)")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto", help="of the compiled engine")
    parser.add_argument("--threads", type=int, default=1, help="threads per engine slot (default: 1)")
    parser.add_argument("--fused-block", action="store_true", help="the engine of `kunlun compile --fused-block`")
    parser.add_argument("--cache", type=Path, help="engine cache (default: <repository>/.engines)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write ``<engine>.frontier.json``, report. A running server reads it when it starts."""
    for name in ("requests", "candidates", "threads"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name}: expected at least 1, found {getattr(arguments, name)}")
    if arguments.candidates > (most := CoreOptions().max_batch_candidates):
        raise UsageError(f"--candidates: expected at most {most}, found {arguments.candidates}")
    try:
        artifact = open_artifact(arguments.artifact)
        log = load_request_log(arguments.data)
        if log.schema != artifact.schema:
            raise ConfigError(f"{arguments.data}: schema: expected the artifact's, found another one")
        engine = open_engine(
            artifact,
            cache=arguments.cache or default_cache(artifact),
            precision=arguments.precision,
            threads_per_slot=arguments.threads,
            slots=1,
            fused_block=arguments.fused_block,
        )
    except (ArtifactError, ConfigError) as error:
        print(f"kunlun frontier: {error}", file=sys.stderr)
        return 1
    requests = np.arange(len(log))[-arguments.requests :]
    with progress_bar(arguments.json) as bar:
        task = bar.add_task("requests", total=len(requests), note="")
        measurement = FrontierMeasurement(artifact, engine, log, arguments.candidates)
        frontier = measurement.run(requests, lambda: bar.advance(task))
    path = frontier_path(engine.entry)
    save_json(frontier, path)
    print(json.dumps({"frontier": str(path), **frontier.model_dump(mode="json")}) if arguments.json else _text(frontier, path))
    return 0


def _text(frontier: Frontier, path: Path) -> str:
    head = f"full answer: NE {frontier.ne_full:.4f}, {frontier.ms_full:.2f} ms of engine time; {frontier.requests} requests"
    lines = [head, f"  {'rung':<18}{'setting':>8}{'NE loss':>20}{'ms saved':>10}{'NE loss per ms':>16}"]
    for step in sorted(frontier.steps, key=lambda s: s.ne_loss / max(s.ms_saved, 1e-9)):
        loss = f"{step.ne_loss:+.3%} ± {step.ne_loss_error:.3%}"
        rate = f"{step.ne_loss / step.ms_saved:.3%}" if step.ms_saved > 0 else "-"
        lines.append(f"  {step.rung:<18}{step.setting:>8g}{loss:>20}{step.ms_saved:>10.2f}{rate:>16}")
    return "\n".join([*lines, f"written to {path}"])


command = Command("measure what each degradation loses in NE and saves in engine time", configure, run)
