"""Writes a trained run as an immutable artifact version (see `model.artifact` for the layout)."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save_file

from model.artifact import (
    MANIFEST,
    Artifact,
    Calibration,
    Manifest,
    TensorLayout,
    file_digests,
    open_artifact,
    published_atomically,
)
from model.config import ConfigError
from model.export.graphs import WEIGHTS, export_graph, externalize
from model.flops import flop_model
from model.signature import GraphSignature, state_bytes, state_specs
from model.training.run import TrainingRun

TABLES = "tables."


def export_run(
    run: TrainingRun, repository: Path, *, name: str, version: str, note: Callable[[str], None] = lambda _: None
) -> Artifact:
    """Export the best checkpoint of `run` as ``<repository>/<name>/<version>``; `note` hears each stage."""
    if not run.result:
        raise ConfigError(f"{run.path}: training has not ended (no result.json); finish it with `kunlun train … --resume`")
    model = run.load_model()
    target = repository / name / version
    with published_atomically(target) as aside:
        graphs = aside / "graphs"
        graphs.mkdir()
        dense = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(TABLES)}
        save_file(dense, graphs / WEIGHTS)
        for module in (model.encode_user, model.score_candidates):
            signature = module.signature
            note(f"tracing {signature.name}")
            proto = export_graph(module, signature, example_inputs(signature))
            externalize(proto, signature.name, graphs / WEIGHTS)
            onnx.save(proto, graphs / f"{signature.name}.onnx")
            onnx.checker.check_model(graphs / f"{signature.name}.onnx")
        note("writing embedding tables")
        (aside / "tables").mkdir()
        for table in model.layout.table_widths():
            np.save(aside / "tables" / f"{table}.npy", model.tables.weight(table).detach().numpy(), allow_pickle=False)
        for name_of_file in ("vocabularies", "prior", "golden"):
            shutil.copyfile(run.path / f"{name_of_file}.safetensors", aside / f"{name_of_file}.safetensors")
        manifest = _manifest(run, name, version, file_digests(aside))
        (aside / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return open_artifact(target)


def example_inputs(signature: GraphSignature) -> dict[str, torch.Tensor]:
    """Tracing inputs: every dynamic size is different and at least 2, so that none is taken for a constant."""
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        for size in spec.shape:
            if isinstance(size, str):
                sizes.setdefault(size, 3 + 4 * len(sizes))
    return {
        spec.name: torch.zeros([sizes[s] if isinstance(s, str) else s for s in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in signature.inputs
    }


def _manifest(run: TrainingRun, name: str, version: str, files: dict[str, str]) -> Manifest:
    schema, config, result = run.schema, run.config.model_config_resolved, run.result
    evaluation = run.path / "evaluation.json"
    measured: dict[str, Any] = json.loads(evaluation.read_text()) if evaluation.is_file() else {"validation": result["best"]}
    return Manifest(
        model=name,
        version=version,
        schema_=schema,
        schema_digest=schema.digest,
        config=config,
        feature_stats=run.encoder.stats.to_json(),
        table_rows=run.encoder.table_rows(),
        user_state=tuple(
            TensorLayout(name=spec.name, shape=tuple(s for s in spec.shape if isinstance(s, int)))
            for spec in state_specs(config, "U")
        ),
        user_state_bytes=state_bytes(config),
        flops=flop_model(schema, config).to_json(),
        calibration={k: Calibration(**c) for k, c in result["calibration"].items()},
        evaluation=measured,
        base_rates=result["base_rates"],
        files=files,
        provenance={
            "kunlun": installed("kunlun-serving"),
            "torch": installed("torch"),
            "onnx": installed("onnx"),
            "python": platform.python_version(),
            "training": run.config.model_dump(mode="json"),
            "result": {k: result[k] for k in ("steps", "seconds", "stopped", "parameters")},
        },
    )
