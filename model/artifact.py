"""The model artifact: an immutable, self-describing directory that any engine can be built from.

Layout of ``<repository>/<model>/<version>/``::

    manifest.json                 Manifest below
    graphs/encode_user.onnx       portable graphs; their weights are references (file, offset, length) into
    graphs/score_candidates.onnx
    graphs/encode_user_jagged.onnx  on jagged rows, for engines with ragged operators; where the architecture has this form
    graphs/weights.safetensors    the dense weights, once, by the twin's parameter names
    tables/<table>.npy            embedding tables, float32 [rows, width], memory-mapped
    vocabularies.safetensors      sorted int64 keys per table
    prior.safetensors             popularity prior: item keys (sorted) and smoothed rates per task
    golden.safetensors            a golden batch: inputs and the twin's outputs of both graphs

Torch-free and pickle-free. Published atomically (write aside, fsync, rename); `open_artifact`
verifies every file against the manifest and fails with one sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors.numpy import load_file

from model.architectures.base import ArchitectureConfig
from model.architectures.registry import AnyArchitecture
from model.config import StrictModel, describe
from model.features import FeatureEncoder, FeatureStats
from model.metrics.score_histogram import BINS
from model.schema import Schema
from model.signature import JAGGED_ENCODE

MANIFEST = "manifest.json"


class ArtifactError(RuntimeError):
    """An artifact or compiled engine that must not be served; says which field differs and what to do."""


class TensorLayout(StrictModel):
    """Declared name, dtype and shape of a user-state tensor (the row dimension left out)."""

    name: str
    dtype: Literal["float32", "int64"] = "float32"
    shape: tuple[int, ...]


class Calibration(StrictModel):
    """What the served graph applies to each task's logit: scale·logit + shift (Platt), then the down-sampling offset.

    `negative_rate`: share of the task's negatives that training saw; its logarithm is the offset.
    """

    scale: float = 1.0
    shift: float = 0.0
    negative_rate: float = 1.0


class ScoreReference(StrictModel):
    """What one task's served probabilities looked like on the held-out part of the training log, for watching drift.

    `histogram`: counts over the `BINS` bins of `model.metrics.score_histogram`; `base_rate`: label rate of the same shown
    items, those whose label is known. Both stand for the full distribution, whatever was sampled.
    """

    histogram: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=BINS, max_length=BINS)]
    base_rate: Annotated[float, Field(ge=0, le=1)]


class Manifest(StrictModel):
    """Everything a server needs to know about a version, and the digest of every file."""

    format_version: Literal[1] = 1
    model: str
    version: str
    schema_: Schema
    schema_digest: str
    config: AnyArchitecture
    feature_stats: dict[str, Any]
    table_rows: dict[str, int]
    user_state: tuple[TensorLayout, ...]
    user_state_bytes: int
    flops: dict[str, Any]
    calibration: dict[str, Calibration]
    evaluation: dict[str, Any]
    base_rates: dict[str, float]
    score_reference: dict[str, ScoreReference] = Field(default_factory=dict)
    files: dict[str, str]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """An opened, verified artifact."""

    path: Path
    manifest: Manifest

    @property
    def schema(self) -> Schema:
        return self.manifest.schema_

    @property
    def config(self) -> ArchitectureConfig:
        return self.manifest.config

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, hence of every file it lists."""
        return sha256_of(self.path / MANIFEST)

    @cached_property
    def encoder(self) -> FeatureEncoder:
        """The feature encoder fitted on this version's training data."""
        vocabularies = load_file(self.path / "vocabularies.safetensors")
        return FeatureEncoder(self.schema, FeatureStats.from_json(self.manifest.feature_stats, vocabularies))

    @cached_property
    def tables(self) -> dict[str, NDArray[np.float32]]:
        """Embedding tables, memory-mapped read-only (shared between processes)."""
        return {name: np.load(self.path / "tables" / f"{name}.npy", mmap_mode="r") for name in self.manifest.table_rows}

    @cached_property
    def prior(self) -> dict[str, NDArray[Any]]:
        """Popularity prior: `keys` int64 [N] sorted, `rates` float32 [N, tasks], `default` float32 [tasks]."""
        return load_file(self.path / "prior.safetensors")

    def golden(self) -> dict[str, NDArray[Any]]:
        """The golden batch, tensors keyed ``<graph>/<tensor>``."""
        return load_file(self.path / "golden.safetensors")

    def graph(self, name: str) -> Path:
        """Path of a portable ONNX graph."""
        return self.path / "graphs" / f"{name}.onnx"

    @property
    def has_jagged_graph(self) -> bool:
        """Whether `graph(JAGGED_ENCODE)` exists: some architectures and artifacts of older releases have padded ones only."""
        return f"graphs/{JAGGED_ENCODE}.onnx" in self.manifest.files


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_artifact(path: str | Path, *, verify: bool = True) -> Artifact:
    """Open a version directory; raises `ArtifactError` in one sentence."""
    path = Path(path)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ArtifactError(
            f"{path}: no {MANIFEST} here; expected <repository>/<model>/<version>, as written by `kunlun export`"
        )
    try:
        manifest = Manifest.model_validate(json.loads(manifest_path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ArtifactError(
            describe(error, Manifest, str(manifest_path)).splitlines()[0] + "; export the model again"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{manifest_path}: not valid JSON ({error}); export the model again") from error
    if manifest.schema_.digest != manifest.schema_digest:
        raise ArtifactError(f"{manifest_path}: schema_digest differs from the schema it holds; export the model again")
    absent = sorted(_required_files(manifest) - manifest.files.keys())
    if absent:
        raise ArtifactError(f"{manifest_path}: files does not list {absent[0]}; export the model again")
    if verify:
        for name, expected in manifest.files.items():
            if not (path / name).is_file():
                raise ArtifactError(f"{path}: file {name} is missing; export the model again")
            if sha256_of(path / name) != expected:
                raise ArtifactError(f"{path}: files.{name} differs from its SHA-256 in the manifest; export the model again")
    return Artifact(path, manifest)


def _required_files(manifest: Manifest) -> set[str]:
    graphs = {f"graphs/{name}" for name in ("encode_user.onnx", "score_candidates.onnx", "weights.safetensors")}
    arrays = {f"{name}.safetensors" for name in ("vocabularies", "prior", "golden")}
    return graphs | arrays | {f"tables/{table}.npy" for table in manifest.table_rows}


def list_versions(repository: str | Path) -> dict[str, list[str]]:
    """Versions per model in a repository, oldest name first."""
    root = Path(repository)
    return {
        model.name: sorted(v.name for v in model.iterdir() if not v.name.startswith(".") and (v / MANIFEST).is_file())
        for model in sorted(root.iterdir())
        if model.is_dir() and not model.name.startswith(".")
    }


@contextmanager
def published_atomically(target: Path) -> Iterator[Path]:
    """Yield a directory beside `target` to write into; fsync and rename it into place, or remove it on error."""
    if target.exists():
        raise ArtifactError(f"{target} exists already and versions are immutable; choose another version")
    aside = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in (*aside.rglob("*"), aside):
            _fsync(path)
        aside.rename(target)
        _fsync(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def file_digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file under `root` except the manifest, by relative path."""
    return {
        str(file.relative_to(root)): sha256_of(file)
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
