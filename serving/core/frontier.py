"""The quality frontier: what each degradation loses in Normalized Entropy and saves in engine time.

Measured by `kunlun frontier` for one artifact on one engine, kept beside the compiled engine (artifact
versions are immutable), read by the degradation ladder. Fails closed: a file of another artifact or
engine is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from model.artifact import ArtifactError
from model.config import StrictModel


class Step(StrictModel):
    """One setting of one rung, against the full answer, in the mean over requests.

    `setting`: STALE_STATE: events that the state lacks; SHORT_HISTORY: share of the caps (0: no
    history); FEWER_CANDIDATES: share that is scored; PRIOR: 0. `ne_loss`: relative increase of NE (noise
    may make it negative), `ne_loss_error` its standard error. `ms_saved`, `flops_saved`: per request.
    """

    rung: Literal["STALE_STATE", "FEWER_CANDIDATES", "SHORT_HISTORY", "PRIOR"]
    setting: Annotated[float, Field(ge=0)]
    ne_loss: float
    ne_loss_error: Annotated[float, Field(ge=0)] = 0.0
    ms_saved: float
    flops_saved: float = 0.0


class Frontier(StrictModel):
    """All steps measured for one artifact on one engine. `ms_full`: engine time of the full answer."""

    format_version: Literal[1] = 1
    artifact_digest: str
    engine_key: str
    requests: int
    ne_full: float
    ms_full: float
    steps: tuple[Step, ...]


def frontier_path(entry: Path) -> Path:
    """Beside the engine cache entry ``<cache>/<entry>``."""
    return entry.with_name(f"{entry.name}.frontier.json")


def engine_key(entry: Path) -> str:
    """The key of an engine's identity, which ends the name of its cache entry."""
    return entry.name.rpartition("-")[2]


def load_frontier(entry: Path, artifact_digest: str) -> Frontier | None:
    """The frontier of this very artifact and engine cache entry; None when none was measured. Raises `ArtifactError`."""
    path = frontier_path(entry)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        frontier = Frontier.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"{path}: is no frontier of this version; run `kunlun frontier` again") from error
    for name, expected in (("artifact_digest", artifact_digest), ("engine_key", engine_key(entry))):
        if getattr(frontier, name) != expected:
            raise ArtifactError(
                f"{path}: {name}: expected {expected}, found {getattr(frontier, name)}; run `kunlun frontier` again"
            )
    return frontier


def default_frontier() -> Frontier:
    """The order used until `kunlun frontier` has measured one: cautious guesses, marked by an empty digest."""
    return Frontier(
        artifact_digest="",
        engine_key="",
        requests=0,
        ne_full=1.0,
        ms_full=10.0,
        steps=(
            Step(rung="STALE_STATE", setting=1, ne_loss=0.002, ms_saved=3),
            Step(rung="STALE_STATE", setting=8, ne_loss=0.01, ms_saved=3),
            Step(rung="SHORT_HISTORY", setting=0.5, ne_loss=0.005, ms_saved=1.5),
            Step(rung="SHORT_HISTORY", setting=0.25, ne_loss=0.01, ms_saved=2),
            Step(rung="SHORT_HISTORY", setting=0.125, ne_loss=0.02, ms_saved=2.5),
            Step(rung="FEWER_CANDIDATES", setting=0.5, ne_loss=0.02, ms_saved=3),
            Step(rung="FEWER_CANDIDATES", setting=0.25, ne_loss=0.04, ms_saved=4.5),
            Step(rung="FEWER_CANDIDATES", setting=0.125, ne_loss=0.06, ms_saved=5.2),
            Step(rung="PRIOR", setting=0, ne_loss=0.15, ms_saved=10),
        ),
    )
