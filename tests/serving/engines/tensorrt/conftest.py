"""An engine built by the stand-in, once, and opened on a made-up GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from model.artifact import Artifact
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets
from serving.engines.tensorrt.build import BuiltTensorRt, build
from serving.engines.tensorrt.engine import TensorRtEngine
from serving.engines.tensorrt.open import open_built
from serving.engines.tensorrt.session import TensorRtSession
from serving.engines.tensorrt.work import WorkPlan
from serving.tuning.engine_work import encode_work, score_work
from tests.serving.engines.tensorrt.stand_in import StandInRuntime

OPTIONS = CoreOptions(max_batch_candidates=96, max_batch_requests=4, max_batch_users=4)


@dataclass(frozen=True)
class BuiltHere:
    """An engine in f32 in a cache of its own."""

    cache: Path
    work: WorkPlan
    built: BuiltTensorRt
    runtime: StandInRuntime


def jagged_work(artifact: Artifact, options: CoreOptions) -> WorkPlan:
    """As if kernels of the artifact's sizes were shipped: `tiny` is smaller than what a GPU runs well."""
    shapes = ShapeBuckets(artifact.schema, options)
    return WorkPlan(is_jagged=True, encode_user=encode_work(shapes, jagged=True), score_candidates=score_work(shapes))


@pytest.fixture(scope="session")
def built_here(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> BuiltHere:
    cache, runtime, work = tmp_path_factory.mktemp("tensorrt"), StandInRuntime(), jagged_work(artifact, OPTIONS)
    made = build(artifact, runtime, work, cache=cache, precision="f32", probe_width=64)
    return BuiltHere(cache, work, made, runtime)


@pytest.fixture
def runtime() -> StandInRuntime:
    return StandInRuntime()


@pytest.fixture
def engine(artifact: Artifact, built_here: BuiltHere, runtime: StandInRuntime) -> Iterator[TensorRtEngine]:
    engine = open_built(artifact, runtime, built_here.work, cache=built_here.cache, precision="f32", slots=1)
    yield engine
    engine.close()


@pytest.fixture
def session(engine: TensorRtEngine) -> TensorRtSession:
    return engine.open_session()
