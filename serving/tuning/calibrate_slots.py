"""How to cut the CPUs into engine slots: every even split is measured, the fastest is kept.

Run by `kunlun calibrate` on the machine that will serve. On CPUs several one-thread slots usually beat
fewer wide ones in throughput; how much, and whether for this model, is for the machine to say. The work is a
mix of both graphs (`SCORES_PER_ENCODE`), all slots busy all the time. The result is kept beside the engine
cache entries and used by a server whose `slots` and `threads_per_slot` are both 0, on equal CPUs only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from model.artifact import Artifact, ArtifactError
from model.config import StrictModel
from model.signature import ENCODE_USER, SCORE_CANDIDATES
from serving.core.host_features import HostFeatures
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets, round_up
from serving.engines.base import Engine, Session
from serving.engines.open import build_engine, engine_identity, open_engine

SCORES_PER_ENCODE = 5
SECONDS = 3.0


class Split(StrictModel):
    """`slots` engine slots of `threads` threads, and the requests per second they scored together."""

    slots: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    requests_per_s: Annotated[float, Field(gt=0)]


class Calibration(StrictModel):
    """All splits of `cpus` CPUs that were measured for one artifact, device and precision; the fastest first."""

    format_version: Literal[1] = 1
    artifact_digest: str
    device: str
    precision: str
    cpus: Annotated[int, Field(ge=1)]
    candidates: Annotated[int, Field(ge=1)]
    splits: tuple[Split, ...]


def even_splits(cpus: int) -> tuple[tuple[int, int], ...]:
    """(slots, threads) with slots × threads = cpus, most slots first."""
    return tuple((cpus // threads, threads) for threads in range(1, cpus + 1) if cpus % threads == 0)


def calibrate(
    artifact: Artifact, *, cache: Path, precision: str, cpus: int, candidates: int, note: Callable[[str], None]
) -> Calibration:
    """Measure every even split; compiles what the cache lacks. Raises `ArtifactError`."""
    measured = []
    for slots, threads in even_splits(cpus):
        engine = _engine(artifact, cache, precision, slots, threads)
        rate = _requests_per_s(artifact, engine, slots, candidates)
        engine.close()
        note(f"{slots} slot(s) × {threads} thread(s): {rate:.1f} requests/s")
        measured.append(Split(slots=slots, threads=threads, requests_per_s=rate))
    identity = engine_identity(artifact, precision=precision, threads=1)
    return Calibration(
        artifact_digest=artifact.digest,
        device=identity.device,
        precision=identity.precision,
        cpus=cpus,
        candidates=candidates,
        splits=tuple(sorted(measured, key=lambda split: -split.requests_per_s)),
    )


def calibration_path(cache: Path, artifact: Artifact) -> Path:
    """Beside the engines of the artifact."""
    return cache / f"{artifact.manifest.model}-{artifact.manifest.version}.slots.json"


def best_split(cache: Path, artifact: Artifact, *, precision: str, cpus: int) -> Split | None:
    """The fastest split measured for exactly this artifact, device, precision and number of CPUs; None without one."""
    try:
        found = Calibration.model_validate_json(calibration_path(cache, artifact).read_bytes())
    except (OSError, ValidationError):
        return None
    identity = engine_identity(artifact, precision=precision, threads=1)
    wanted = (artifact.digest, identity.device, identity.precision, cpus)
    return found.splits[0] if (found.artifact_digest, found.device, found.precision, found.cpus) == wanted else None


def _engine(artifact: Artifact, cache: Path, precision: str, slots: int, threads: int) -> Engine:
    """From the cache; compiled first if it is not there."""
    try:
        return open_engine(artifact, cache=cache, precision=precision, threads_per_slot=threads, slots=slots)
    except ArtifactError:
        build_engine(artifact, cache=cache, precision=precision, threads=threads)
        return open_engine(artifact, cache=cache, precision=precision, threads_per_slot=threads, slots=slots)


def _requests_per_s(artifact: Artifact, engine: Engine, slots: int, candidates: int) -> float:
    """Requests that `slots` threads score together per second, an encode among every few."""
    work = tuple(_mix(artifact, candidates))
    ready, counts = threading.Barrier(slots), [0.0] * slots
    errors: list[Exception] = []

    def run(slot: int) -> None:
        try:
            session = engine.open_session()
            for graph, inputs in work:
                session.run(graph, inputs)
            ready.wait()
            counts[slot] = _rate(session, work)
        except Exception as error:
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=run, args=(slot,)) for slot in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts)


def _rate(session: Session, work: tuple[tuple[str, dict[str, Any]], ...]) -> float:
    began, rounds = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < SECONDS or not rounds:
        for graph, inputs in work:
            session.run(graph, inputs)
        rounds += 1
    return rounds * SCORES_PER_ENCODE / elapsed


def _mix(artifact: Artifact, candidates: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """One round: a user with histories of half their caps is encoded, and `SCORES_PER_ENCODE` requests are scored."""
    host, shapes = HostFeatures(artifact), ShapeBuckets(artifact.schema, CoreOptions())
    sizes = shapes.encode_sizes(shapes.level({e.name: e.cap // 2 for e in artifact.schema.events}), 1)
    yield ENCODE_USER, host.zeros(host.encode_signature, sizes)
    rows = round_up(shapes.candidates, candidates)
    for _ in range(SCORES_PER_ENCODE):
        yield SCORE_CANDIDATES, host.zeros(host.score_signature, {"R": 1, "C": rows})
