"""`kunlun export`: write a trained run as an immutable artifact version."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from kunlun.cli import Command, UsageError
from model.artifact import ArtifactError
from model.cli.console import add_json_flag, note, report
from model.config import ConfigError


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="directory of a finished training run")
    parser.add_argument("--repository", type=Path, required=True, help="model repository to publish into")
    parser.add_argument("--name", help="model name (default: the name in the training configuration)")
    parser.add_argument("--version", help="version (default: UTC time, 20260131T235959Z)")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    from model.export.writer import export_run
    from model.training.run import TrainingRun

    began = time.perf_counter()
    try:
        run = TrainingRun.open(arguments.run)
        version = arguments.version or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        artifact = export_run(run, arguments.repository, name=arguments.name or run.config.name, version=version, note=note)
    except (ConfigError, ArtifactError) as error:
        raise UsageError(str(error)) from error
    size = sum(f.stat().st_size for f in artifact.path.rglob("*") if f.is_file())
    figures = {
        "artifact": str(artifact.path),
        "model": artifact.manifest.model,
        "version": artifact.manifest.version,
        "digest": artifact.digest,
        "bytes": size,
        "user_state_bytes": artifact.manifest.user_state_bytes,
        "seconds": round(time.perf_counter() - began, 2),
    }
    report(arguments, figures, f"{artifact.path}  ({size / 1e6:.1f} MB, user state {artifact.manifest.user_state_bytes} bytes)")
    return 0


command = Command("write a trained run as an artifact version", _configure, _run)
