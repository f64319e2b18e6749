"""Fixtures of a real artifact with random weights and its compiled engine, built once per state of the sources.

Tracing the graphs takes the better part of a minute, so the artifact is kept in pytest's cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model.artifact import Artifact, ArtifactError, open_artifact
from serving.engines.open import build_engine
from tests.serving.random_artifact import build_artifact

ROOT = Path(__file__).parents[2]
KEPT_S = 24 * 3600.0
"""Artifacts of other states of the sources stay this long: another session may be using one."""


def _sources_digest() -> str:
    digest = hashlib.sha256()
    files = [*(ROOT / "model").rglob("*.py"), *(ROOT / "model").rglob("*.yaml"), *(ROOT / "kernels").rglob("*.py")]
    for file in sorted([*files, Path(__file__).with_name("random_artifact.py")]):
        if not {"cli", "data", "training", "metrics"} & set(file.parts):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _engine_digest() -> str:
    files = sorted(file for file in (ROOT / "serving/engines").rglob("*") if file.suffix in (".py", ".cpp", ".hpp"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One test session at a time builds in `folder`."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kept_artifact(request: pytest.FixtureRequest, preset: str) -> Artifact:
    assert request.config.cache is not None
    kept = request.config.cache.mkdir(f"kunlun-random-artifact-{preset.replace('_', '-')}")
    repository = kept / _sources_digest()
    with _alone(kept):
        try:
            return open_artifact(repository / "random" / "1")
        except ArtifactError:
            for old in kept.iterdir():
                if old == repository or (old.is_dir() and old.stat().st_mtime < time.time() - KEPT_S):
                    shutil.rmtree(old)
            return build_artifact(repository, preset=preset)


def _kept_engine(artifact: Artifact, *, fused_block: bool = False) -> Path:
    repository = artifact.path.parent.parent
    cache = repository / f".engines-{_engine_digest()}{'-fused' if fused_block else ''}"
    with _alone(repository.parent):
        if not cache.is_dir() or not any(cache.iterdir()):
            built = build_engine(artifact, cache=cache, precision="f32", threads=1, fused_block=fused_block)
            assert built.path is not None
    return cache


@pytest.fixture(scope="session")
def artifact(request: pytest.FixtureRequest) -> Artifact:
    """A `tiny` model with random weights."""
    return _kept_artifact(request, "tiny")


@pytest.fixture(scope="session")
def engine_cache(artifact: Artifact) -> Path:
    """An engine cache that holds the artifact compiled for one thread, f32."""
    return _kept_engine(artifact)


@pytest.fixture(scope="session")
def fused_engine_cache(artifact: Artifact) -> Path:
    """The same with PFFN blocks as one operation; skips where a C++ compiler or AVX-512 is missing."""
    try:
        return _kept_engine(artifact, fused_block=True)
    except ArtifactError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def exact_artifact(request: pytest.FixtureRequest) -> Artifact:
    """The same in the `exact` wiring."""
    return _kept_artifact(request, "tiny_exact")


@pytest.fixture(scope="session")
def exact_engine_cache(exact_artifact: Artifact) -> Path:
    """An engine cache for `exact_artifact`."""
    return _kept_engine(exact_artifact)
