"""Writes a model as an immutable artifact version (see `model.artifact` for the layout)."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from model.artifact import (
    MANIFEST,
    Artifact,
    Calibration,
    Manifest,
    ScoreReference,
    TensorLayout,
    file_digests,
    open_artifact,
    published_atomically,
)
from model.config import ConfigError
from model.export.graphs import WEIGHTS, export_graph, export_jagged, externalize
from model.features import FeatureEncoder
from model.flops import flop_model
from model.ranker import KunlunRanker
from model.signature import JAGGED_ENCODE, GraphSignature
from model.tensor_spec import OFFSETS, USERS
from model.training.run import SCORE_REFERENCE, TrainingRun, read_json

TABLES = "tables."


@dataclass(frozen=True)
class ModelParts:
    """Everything an artifact is made of. `arrays`: contents of vocabularies, prior and golden (`.safetensors`)."""

    model: KunlunRanker
    encoder: FeatureEncoder
    calibration: Mapping[str, Calibration]
    base_rates: Mapping[str, float]
    score_reference: Mapping[str, ScoreReference]
    evaluation: Mapping[str, Any]
    provenance: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, NDArray[Any]]]


def export_run(
    run: TrainingRun, repository: Path, *, name: str, version: str, note: Callable[[str], None] = lambda _: None
) -> Artifact:
    """Export the best checkpoint of `run` as ``<repository>/<name>/<version>``; `note` hears each stage."""
    result = run.result
    if not result:
        raise ConfigError(f"{run.path}: training has not ended (no result.json); finish it with `kunlun train … --resume`")
    evaluation = run.path / "evaluation.json"
    references = read_json(run.path / SCORE_REFERENCE) if (run.path / SCORE_REFERENCE).is_file() else {}  # older runs
    parts = ModelParts(
        model=run.load_model(),
        encoder=run.encoder,
        calibration={k: Calibration(**c) for k, c in result["calibration"].items()},
        base_rates=result["base_rates"],
        score_reference={k: ScoreReference(**r) for k, r in references.items()},
        evaluation=json.loads(evaluation.read_text()) if evaluation.is_file() else {"validation": result["best"]},
        provenance={
            "training": run.config.model_dump(mode="json"),
            "result": {k: result[k] for k in ("steps", "seconds", "stopped", "parameters")},
        },
        arrays={n: load_file(run.path / f"{n}.safetensors") for n in ("vocabularies", "prior", "golden")},
    )
    for what, given in (("model name", name), ("version", version)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", given):
            raise ConfigError(f"{what}: expected letters, digits, '.', '_' and '-', found {given!r}")
    return write_artifact(repository / name / version, parts, note)


def write_artifact(target: Path, parts: ModelParts, note: Callable[[str], None] = lambda _: None) -> Artifact:
    """Publish `parts` as the version directory ``<repository>/<model>/<version>``, atomically; raises `ArtifactError`."""
    model = parts.model
    with published_atomically(target) as aside:
        graphs, tables = aside / "graphs", aside / "tables"
        graphs.mkdir()
        tables.mkdir()
        dense = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(TABLES)}
        save_file(dense, graphs / WEIGHTS)
        for module in (model.encode_user, model.score_candidates):
            signature = module.signature
            note(f"tracing {signature.name}")
            proto = export_graph(module, signature, example_inputs(signature))
            _save(proto, signature.name, graphs / f"{signature.name}.onnx")
        if (jagged := model.encode_user.jagged_signature) is not None:
            note(f"tracing {jagged.name} on jagged rows")
            _save(export_jagged(model.encode_user, example_inputs(jagged)), jagged.name, graphs / f"{JAGGED_ENCODE}.onnx")
        note("writing embedding tables")
        for table in model.layout.table_widths():
            np.save(tables / f"{table}.npy", model.tables.weight(table).detach().numpy(), allow_pickle=False)
        for file, arrays in parts.arrays.items():
            save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()}, aside / f"{file}.safetensors")
        manifest = _manifest(parts, target.parent.name, target.name, file_digests(aside))
        (aside / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return open_artifact(target)


def _save(proto: onnx.ModelProto, prefix: str, path: Path) -> None:
    """Write a graph whose weights are those of `prefix` in the file beside it, and check it."""
    externalize(proto, prefix, path.with_name(WEIGHTS))
    onnx.save(proto, path)
    onnx.checker.check_model(path)


def example_inputs(signature: GraphSignature) -> dict[str, torch.Tensor]:
    """Tracing inputs: every dynamic size is different and at least 2, so that none is taken for a constant."""
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        for size in spec.shape:
            if isinstance(size, str):
                sizes.setdefault(size, sizes[USERS] + 1 if size == OFFSETS else 3 + 4 * len(sizes))
    return {
        spec.name: torch.zeros([sizes[s] if isinstance(s, str) else s for s in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in signature.inputs
    }


def _manifest(parts: ModelParts, name: str, version: str, files: dict[str, str]) -> Manifest:
    schema, config = parts.model.schema, parts.model.config
    state = config.state_specs(schema, USERS)
    return Manifest(
        model=name,
        version=version,
        schema_=schema,
        schema_digest=schema.digest,
        config=config,
        feature_stats=parts.encoder.stats.to_json(),
        table_rows=parts.encoder.table_rows(),
        user_state=tuple(
            TensorLayout.model_validate({"name": spec.name, "dtype": spec.dtype, "shape": spec.row_shape}) for spec in state
        ),
        user_state_bytes=sum(spec.row_bytes for spec in state),
        flops=flop_model(schema, config).to_json(),
        calibration=dict(parts.calibration),
        evaluation=dict(parts.evaluation),
        base_rates=dict(parts.base_rates),
        score_reference=dict(parts.score_reference),
        files=files,
        provenance={
            "kunlun": installed("kunlun-serving"),
            "torch": installed("torch"),
            "onnx": installed("onnx"),
            "python": platform.python_version(),
            **parts.provenance,
        },
    )
