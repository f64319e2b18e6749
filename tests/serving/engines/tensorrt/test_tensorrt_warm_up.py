"""Warm-up of the engine: no bucket is left for a batch to set up, and what it tells of times is true."""

from __future__ import annotations

import numpy as np
import pytest

from model.artifact import Artifact
from model.flops import FlopModel
from model.signature import ENCODE_USER
from serving.core.host_features import HostFeatures
from serving.core.shapes import EncodeShape, ShapeBuckets
from serving.core.warm_up import WarmUp
from serving.engines.cache import GRAPHS
from serving.engines.tensorrt.session import TensorRtSession
from serving.engines.tensorrt.staging import jagged_sizes
from tests.serving.engines.tensorrt.conftest import OPTIONS, BuiltHere
from tests.serving.engines.tensorrt.stand_in import StandInRuntime


@pytest.fixture
def warm_up(artifact: Artifact) -> WarmUp:
    shapes = ShapeBuckets(artifact.schema, OPTIONS)
    return WarmUp(shapes, HostFeatures(artifact), FlopModel.from_json(artifact.manifest.flops, artifact.config))


def ignored(graph: str, flops: float, seconds: float) -> None:
    """Of whoever asks for no times."""


def test_warm_up_opens_every_bucket_of_jagged_rows(
    warm_up: WarmUp, session: TensorRtSession, runtime: StandInRuntime, built_here: BuiltHere
) -> None:
    """Whose bucket is that of the rows, of which empty histories have none."""
    work = built_here.work
    assert work.is_jagged
    gpu, buckets = runtime.gpus[0], sum(len(work.of(graph).buckets) for graph in GRAPHS)
    warm_up.run_essential(session, ignored)
    assert gpu.captures == buckets - warm_up.cold
    warm_up.prepare_rest(session)
    assert gpu.captures == buckets
    while warm_up.run_next(session):
        pass
    assert (warm_up.cold, gpu.captures) == (0, buckets)


def test_a_shape_is_timed_in_the_bucket_whose_work_it_stands_for(warm_up: WarmUp, artifact: Artifact) -> None:
    host, shapes = HostFeatures(artifact), ShapeBuckets(artifact.schema, OPTIONS)
    events = [event.name for event in artifact.schema.events]
    for level, steps in enumerate(shapes.levels):
        graph, inputs = warm_up.inputs(EncodeShape(level, 4))
        assert graph == ENCODE_USER
        sizes = jagged_sizes(host.encode_signature, inputs, events)
        assert sizes == {"U": 4} | {f"N_{event}": 4 * count for event, count in steps.items()}
        assert all(not np.any(array) for name, array in inputs.items() if not name.endswith("_length"))
