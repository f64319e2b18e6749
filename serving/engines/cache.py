"""The engine cache: compiled graphs beside the repository, each entry with its own manifest.

Layout: ``<cache>/<model>-<version>-<key>/{engine.json, the target's files}``,
where the key is a digest of everything the files depend on (`EngineIdentity`). Written by
`kunlun compile`, read by `open_engine`. Entries are immutable and published atomically; compiling
again puts a whole new entry in the place of the old one.

Invariant: the loader fails closed. An entry that differs in any field of its identity, or whose
files differ from their digests, is never run; the error names the field and the command to repeat.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from model.artifact import Artifact, ArtifactError, file_digests, published_atomically, sha256_of
from model.config import StrictModel
from model.signature import ENCODE_USER, SCORE_CANDIDATES

ENGINE_MANIFEST = "engine.json"
Precision = Literal["f32", "f16", "bf16"]
GRAPHS = (ENCODE_USER, SCORE_CANDIDATES)
FUSED_BLOCK = "fused_block"


class EngineIdentity(StrictModel):
    """Everything compiled files depend on; two engines with equal identities are interchangeable.

    `libraries`: version by name; `fused_block` is among them, with the digest of its sources, exactly in engines that have it.
    """

    artifact_digest: str
    target: str
    device: str
    libraries: dict[str, str]
    precision: Precision
    threads: Annotated[int, Field(ge=1)]

    @property
    def fused_block(self) -> bool:
        """Whether PFFN blocks run as one operation of our own."""
        return FUSED_BLOCK in self.libraries

    @property
    def key(self) -> str:
        """Sixteen hex digits naming the entry."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class ParityFigures(StrictModel):
    """Largest differences between the engine and the torch twin on the golden batch."""

    max_probability_error: float
    max_state_error: float
    gate: float
    state_gate: float

    @property
    def passed(self) -> bool:
        """Both below their gates (states relative to their largest value); NaN fails."""
        return self.max_probability_error <= self.gate and self.max_state_error <= self.state_gate

    def complaint(self) -> str:
        """What was expected and found, for somebody whose engine did not pass."""
        return (
            f"parity: expected errors of at most {self.gate:g} (probability) and {self.state_gate:g} (state), found "
            f"{self.max_probability_error:.3g} and {self.max_state_error:.3g}; nothing was published"
        )


class EngineManifest(StrictModel):
    """What a cache entry says about itself."""

    format_version: Literal[2] = 2
    identity: EngineIdentity
    parity: ParityFigures
    device_peak_flops: Annotated[float, Field(gt=0)]
    compile_seconds: float
    files: dict[str, str]
    provenance: dict[str, Any] = Field(default_factory=dict)
    """What else the target has to say of where its files come from."""


def default_cache(artifact: Artifact) -> Path:
    """``<repository>/.engines`` of an artifact at ``<repository>/<model>/<version>``."""
    return artifact.path.resolve().parent.parent / ".engines"


def entry_path(cache: Path, artifact: Artifact, identity: EngineIdentity) -> Path:
    """Where the entry of an identity lives."""
    return cache / f"{artifact.manifest.model}-{artifact.manifest.version}-{identity.key}"


def publish(
    cache: Path,
    artifact: Artifact,
    identity: EngineIdentity,
    compiled: Path,
    parity: ParityFigures,
    device_peak_flops: float,
    compile_seconds: float,
    provenance: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Publish the files of directory `compiled` (an older entry of the same identity is replaced); returns its path."""
    target = entry_path(cache, artifact, identity)
    cache.mkdir(parents=True, exist_ok=True)
    built, replaced = (target.with_name(f".{target.name}.{os.getpid()}.{what}") for what in ("built", "replaced"))
    for left_over in (built, replaced):
        shutil.rmtree(left_over, ignore_errors=True)
    with published_atomically(built) as aside:
        for file in sorted(compiled.iterdir()):
            shutil.copyfile(file, aside / file.name)
        manifest = EngineManifest(
            identity=identity,
            parity=parity,
            device_peak_flops=device_peak_flops,
            compile_seconds=compile_seconds,
            files=file_digests(aside),
            provenance=dict(provenance),
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"
        (aside / ENGINE_MANIFEST).write_text(text, encoding="utf-8")
    _put_in_place(built, target, replaced)
    return target


def _put_in_place(built: Path, target: Path, replaced: Path) -> None:
    """Directories cannot be exchanged in one portable step: the entry is away between two renames, and never half written."""
    if target.exists():
        target.rename(replaced)
    built.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def load(cache: Path, artifact: Artifact, wanted: EngineIdentity) -> tuple[Path, EngineManifest]:
    """The verified entry of `wanted`; raises `ArtifactError` saying what differs and how to rebuild."""
    path = entry_path(cache, artifact, wanted)
    if not (path / ENGINE_MANIFEST).is_file():
        raise ArtifactError(f"{_difference(cache, artifact, wanted)}; {rebuild_hint(cache, artifact, wanted)}")
    manifest = _read(path)
    if manifest is None or manifest.identity != wanted:
        raise ArtifactError(f"{path / ENGINE_MANIFEST}: is damaged; {rebuild_hint(cache, artifact, wanted)}")
    for name, expected in manifest.files.items():
        if not (path / name).is_file() or sha256_of(path / name) != expected:
            raise ArtifactError(
                f"{path}: files.{name} differs from its SHA-256 in {ENGINE_MANIFEST}; {rebuild_hint(cache, artifact, wanted)}"
            )
    if not manifest.parity.passed:
        raise ArtifactError(
            f"{path}: parity: expected a probability error of at most {manifest.parity.gate:g} and a state error of at most "
            f"{manifest.parity.state_gate:g}, found {manifest.parity.max_probability_error:g} and "
            f"{manifest.parity.max_state_error:g}; export again"
        )
    return path, manifest


def entries(cache: Path) -> Iterator[tuple[Path, EngineManifest]]:
    """Every readable entry with its manifest, whatever it is of; its files are not verified."""
    for path in sorted(cache.iterdir()) if cache.is_dir() else ():
        if (manifest := _read(path)) is not None:
            yield path, manifest


def rebuild_hint(cache: Path, artifact: Artifact, wanted: EngineIdentity) -> str:
    """The command that builds the missing entry."""
    if wanted.target == "tensorrt":
        elsewhere = "" if cache.resolve() == default_cache(artifact) else f" --cache {cache}"
        return (
            f"run `kunlun compile {artifact.path} --target tensorrt --precision {wanted.precision}{elsewhere}`, or with the "
            "server's --config where that sets the largest batches"
        )
    where = " --fused-block" if wanted.fused_block else ""
    where += "" if cache.resolve() == default_cache(artifact) else f" --cache {cache}"
    return (
        f"run `kunlun compile {artifact.path} --target {wanted.target} --precision {wanted.precision} "
        f"--threads {wanted.threads}{where}`"
    )


def _difference(cache: Path, artifact: Artifact, wanted: EngineIdentity) -> str:
    """Why no entry fits: the first field in which the nearest entry of this version differs, or that there is none."""
    prefix = f"{artifact.manifest.model}-{artifact.manifest.version}-"
    found = [m for p in sorted(cache.glob(f"{prefix}*")) if (m := _read(p)) is not None] if cache.is_dir() else []
    if not found:
        return f"{cache}: no compiled engine for {artifact.manifest.model} version {artifact.manifest.version}"
    nearest = min((_differing(m.identity, wanted) for m in found), key=len)
    field, expected, seen = nearest[0]
    which = f"{artifact.manifest.model} version {artifact.manifest.version}"
    return f"{cache}: compiled engine of {which}: {field}: expected {expected}, found {seen}"


def _differing(found: EngineIdentity, wanted: EngineIdentity) -> list[tuple[str, str, str]]:
    ours, theirs = wanted.model_dump(), found.model_dump()
    return [(name, str(ours[name]), str(theirs[name])) for name in ours if ours[name] != theirs[name]] or [
        ("engine.json", "a readable entry", "none")
    ]


def _read(path: Path) -> EngineManifest | None:
    try:
        return EngineManifest.model_validate_json((path / ENGINE_MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None
