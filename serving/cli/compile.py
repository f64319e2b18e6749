"""`kunlun compile`: portable artifact → compiled engine in the engine cache, checked against the torch twin."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kunlun.cli import Command, UsageError
from model.artifact import ArtifactError, open_artifact
from model.config import ConfigError
from serving.cli.compile_tensorrt import compile_tensorrt
from serving.config import ServerConfig, artifact_path, load_config
from serving.core.options import CoreOptions
from serving.engines.base import DeviceError
from serving.engines.cache import default_cache
from serving.engines.open import TARGETS, BuiltEngine, build_engine

DEFAULTS = {"target": "openvino", "precision": "auto", "cache": None, "threads": 1, "fused_block": False}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("artifact", type=Path, nargs="?", help="version directory: <repository>/<model>/<version>")
    parser.add_argument(
        "--config", type=Path, help="a server's YAML file, in place of all the rest: compile what it will serve"
    )
    parser.set_defaults(**DEFAULTS)
    parser.add_argument("--target", choices=TARGETS, help="engine to compile for (default: openvino)")
    precision = "auto: bf16 where the CPU has it, and on GPUs; f16 for GPUs only"
    parser.add_argument("--precision", choices=("auto", "f32", "f16", "bf16"), help=precision)
    parser.add_argument("--cache", type=Path, help="engine cache (default: <repository>/.engines)")
    parser.add_argument("--threads", type=int, help="threads per engine slot (default: 1)")
    parser.add_argument("--fused-block", action="store_true", help="PFFN blocks as one operation; needs a C++ compiler")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Compile and report; 1 when the engine does not compute what the twin computed, 3 when there is no GPU to build on."""
    served = _as_served(arguments) if arguments.config is not None else None
    if arguments.artifact is None:
        raise UsageError("artifact: expected a version directory, or --config, found neither")
    if arguments.threads < 1:
        raise UsageError(f"--threads: expected at least 1, found {arguments.threads}")
    try:
        artifact = open_artifact(arguments.artifact)
        cache = arguments.cache or default_cache(artifact)
        if arguments.target == "tensorrt":
            options = CoreOptions() if served is None else served.core
            status = compile_tensorrt(artifact, options, cache, arguments.precision, as_json=arguments.json)
            if status != 0 or served is None or not served.backup_engine:
                return status
            # `open_engine` wants the CPU engine behind it, of this precision and number of threads.
            built = build_engine(artifact, cache=cache, precision="auto", threads=1)
            print(_text(built), file=sys.stderr if arguments.json else sys.stdout)
        else:
            built = build_engine(
                artifact,
                cache=cache,
                precision=arguments.precision,
                threads=arguments.threads,
                fused_block=arguments.fused_block,
            )
            print(json.dumps(_report(built)) if arguments.json else _text(built))
    except (ArtifactError, DeviceError) as error:
        print(f"kunlun compile: {error}", file=sys.stderr)
        return 1
    if built.path is None:
        print(f"kunlun compile: {built.parity.complaint()}", file=sys.stderr)
        return 1
    return 0


def _as_served(arguments: argparse.Namespace) -> ServerConfig:
    """Take everything from a server's configuration, so that `kunlun serve` with it finds the engine."""
    if arguments.artifact is not None:
        raise UsageError(f"--config: expected no artifact beside it, found {arguments.artifact}")
    for flag, default in DEFAULTS.items():
        if (found := getattr(arguments, flag)) != default:
            raise UsageError(f"--config: expected no --{flag.replace('_', '-')} beside it, found {found}")
    try:
        config = load_config(arguments.config, {})
        arguments.artifact = artifact_path(config)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    arguments.target, arguments.precision, arguments.fused_block = config.engine, config.precision, config.fused_block
    arguments.cache, arguments.threads = config.engine_cache, config.slot_threads
    return config


def _report(built: BuiltEngine) -> dict[str, object]:
    return {
        "engine": str(built.path) if built.path else None,
        "target": built.identity.target,
        "device": built.identity.device,
        "precision": built.identity.precision,
        "threads": built.identity.threads,
        "parity": built.parity.model_dump() | {"passed": built.parity.passed},
        "kernels": built.kernels,
        "compile_seconds": round(built.compile_seconds, 3),
        "device_peak_gflops": round(built.device_peak_flops / 1e9, 2),
    }


def _text(built: BuiltEngine) -> str:
    identity, parity = built.identity, built.parity
    return "\n".join(
        [
            f"target      {identity.target} on {identity.device}, {identity.precision}, {identity.threads} thread(s) per slot",
            f"compiled    {built.compile_seconds:.2f} s",
            f"parity      max |Δ probability| {parity.max_probability_error:.2e}, max |Δ state| {parity.max_state_error:.2e}"
            f" (gates {parity.gate:g}, {parity.state_gate:g}): {'passed' if parity.passed else 'FAILED'}",
            f"kernels     {built.kernels}",
            f"peak        {built.device_peak_flops / 1e9:.1f} GFLOP/s per slot (matrix product in this engine)",
            f"engine      {built.path or 'not published'}",
        ]
    )


command = Command("compile an artifact for this machine's hardware and check it against the torch twin", configure, run)
